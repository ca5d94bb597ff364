"""The registry of erasure methods: a name, a config and a function from a task to an Erasure."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from erase.core.fingerprint import fingerprint
from erase.core.names import find_weight
from erase.erasure.erasure import Erasure
from erase.tasks.base import Task
from erase.training.config import TrainedConfig
from erase.training.watch import require_runnable

MethodFunction = Callable[[Task, Any], Erasure]


@dataclass(frozen=True)
class Method:
    """One registered method; its config's fields are its CLI flags and YAML keys.

    task: the kind of task it needs, `object` if the Task protocol is enough.
    """

    name: str
    config: type
    function: MethodFunction
    task: type

    def __call__(self, task: Task, config: Any = None) -> Erasure:
        """Run on a task, by default with default settings; the Erasure with its recipe.

        Raises ValueError for a task of another kind.
        """
        self.require_serves(type(task))
        config = config or self.config()
        if isinstance(config, TrainedConfig):
            require_runnable(config.training, task)
        erasure = self.function(task, config)
        weights = {name: find_weight(task.components, name) for name in erasure.deltas}
        erasure.recipe |= {
            "base": {
                "fingerprints": {name: fingerprint(w) for name, w in weights.items()},
                **task.architecture(),
            },
            "method": self.name,
            "config": asdict(config),
            "task": task.describe(),
        }
        return erasure

    def require_serves(self, kind: type) -> None:
        """ValueError unless the method serves this kind of task."""
        if not issubclass(kind, self.task):
            raise ValueError(
                f"The method {self.name} needs a {self.task.__name__}, not a "
                f"{kind.__name__}; choose another method."
            )


_REGISTRY: dict[str, Method] = {}


def register(
    name: str, config: type, task: type = object
) -> Callable[[MethodFunction], MethodFunction]:
    """Make a function `(task, config) -> Erasure` available under `name`."""

    def add(function: MethodFunction) -> MethodFunction:
        _REGISTRY[name] = Method(name, config, function, task)
        return function

    return add


def methods() -> dict[str, Method]:
    """All registered methods, by name."""
    return dict(sorted(_REGISTRY.items()))


def serving(kind: type) -> list[str]:
    """The names of the methods that serve a kind of task."""
    return [name for name, method in methods().items() if issubclass(kind, method.task)]


def get_method(name: str) -> Method:
    """The method called `name`; ValueError, listing all, if there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"There is no method {name!r}; choose one of {', '.join(methods())}.")
    return _REGISTRY[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
