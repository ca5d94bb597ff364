"""The registry of attacks: a name, a config and a function from a target to an Outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erase.attacks.base import Outcome, Target
from erase.core.process import own_settings
from erase.models.family import Family
from erase.prompts.catalogue import Sampling
from erase.support.config import Config
from erase.support.registry import Registry
from erase.tasks.diffusion.denoiser import ConditionedDenoiser

AttackFunction = Callable[[Target, Any], Outcome]
Hindrance = Callable[[Family], str]
Trial = Callable[[ConditionedDenoiser, Sampling, Any], None]


@dataclass(frozen=True)
class Attack:
    """One registered attack; its config's fields are its CLI flags and YAML keys.

    hindrance: why it cannot serve a family, or an empty text. trial: raises ValueError where it
    cannot serve a model that is sampled so, of a family that it serves.
    """

    name: str
    config: type[Config]
    function: AttackFunction
    hindrance: Hindrance
    trial: Trial

    @own_settings()
    def __call__(self, target: Target, config: Config | None = None) -> Outcome:
        """Run on a target, by default with default settings; the target is left as it was.

        Raises ValueError if the attack cannot serve the target's family.
        """
        self.require_serves(target.denoiser.family)
        return self.function(target, config or self.config())

    def serves(self, family: Family) -> bool:
        """Whether pipelines of this family can be attacked so."""
        return not self.hindrance(family)

    def require_serves(self, family: Family) -> None:
        """Raise ValueError if pipelines of this family cannot be attacked so."""
        if why := self.hindrance(family):
            raise ValueError(
                f"The attack {self.name} cannot serve a {family.pipeline.__name__}: {why}; choose "
                f"of {', '.join(serving(family)) or 'pipelines of other classes'}."
            )


ATTACKS: Registry[Attack] = Registry("attack", "erase.attacks", own="erase.attacks")


def register(
    name: str,
    config: type[Config],
    hindrance: Hindrance = lambda _: "",
    trial: Trial = lambda denoiser, sampling, config: None,
) -> Callable[[AttackFunction], AttackFunction]:
    """Make a function `(target, config) -> Outcome` available under `name`.

    Raises ValueError if the name is taken.
    """
    return ATTACKS.adding(name, made=lambda made: Attack(name, config, made, hindrance, trial))


def attacks() -> dict[str, Attack]:
    """All registered attacks, by name."""
    return ATTACKS.all()


def serving(family: Family) -> list[str]:
    """The names of the attacks that serve a family."""
    return [name for name, attack in attacks().items() if attack.serves(family)]


def get_attack(name: str) -> Attack:
    """The attack called `name`; ValueError, listing all, if there is none."""
    return ATTACKS.get(name)
