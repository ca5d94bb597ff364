"""The registry of attacks: a name, a config and a function from a target to an Outcome."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erase.attacks.base import Outcome, Target
from erase.support.config import Config
from erase.support.registry import Registry

AttackFunction = Callable[[Target, Any], Outcome]


@dataclass(frozen=True)
class Attack:
    """One registered attack; its config's fields are its CLI flags and YAML keys."""

    name: str
    config: type[Config]
    function: AttackFunction

    def __call__(self, target: Target, config: Config | None = None) -> Outcome:
        """Run on a target, by default with default settings; the target is left as it was."""
        return self.function(target, config or self.config())


ATTACKS: Registry[Attack] = Registry("attack", "erase.attacks")


def register(name: str, config: type[Config]) -> Callable[[AttackFunction], AttackFunction]:
    """Make a function `(target, config) -> Outcome` available under `name`.

    Raises ValueError if another attack has that name.
    """

    def add(function: AttackFunction) -> AttackFunction:
        ATTACKS.add(name, Attack(name, config, function))
        return function

    return add


def attacks() -> dict[str, Attack]:
    """All registered attacks, by name."""
    return ATTACKS.all()


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
