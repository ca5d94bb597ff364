"""The registry of attacks: a name, a config and a function from a target to an Outcome."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erase.attacks.base import Outcome, Target

AttackFunction = Callable[[Target, Any], Outcome]


@dataclass(frozen=True)
class Attack:
    """One registered attack; its config's fields are its CLI flags and YAML keys."""

    name: str
    config: type
    function: AttackFunction

    def __call__(self, target: Target, config: Any = None) -> Outcome:
        """Run on a target, by default with default settings; the target is left as it was."""
        return self.function(target, config or self.config())


_REGISTRY: dict[str, Attack] = {}


def register(name: str, config: type) -> Callable[[AttackFunction], AttackFunction]:
    """Make a function `(target, config) -> Outcome` available under `name`."""

    def add(function: AttackFunction) -> AttackFunction:
        _REGISTRY[name] = Attack(name, config, function)
        return function

    return add


def attacks() -> dict[str, Attack]:
    """All registered attacks, by name."""
    return dict(sorted(_REGISTRY.items()))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
