"""Concept erasure for diffusers: make a model forget, and measure what it still knows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from erase.methods import methods

if TYPE_CHECKING:
    from erase.erasure.algebra import compose, difference, export_lora, interference, merge, scale
    from erase.erasure.erasure import AppliedErasure, Erasure
    from erase.models.opening import load_model
    from erase.prompts.request import EraseRequest
    from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
    from erase.runs.erase import RunConfig, run
    from erase.tasks.classification.task import ClassificationTask

# Each brings torch, diffusers, judges or plots, and so waits until it is asked for.
_HOMES = {
    "erasure.algebra": (
        "compose", "difference", "export_lora", "interference", "merge", "scale",
    ),
    "erasure.erasure": ("AppliedErasure", "Erasure"),
    "models.opening": ("load_model",),
    "prompts.request": ("EraseRequest",),
    "runs.classify": ("ClassificationRun", "ClassifierConfig", "classify"),
    "runs.erase": ("RunConfig", "run"),
    "tasks.classification.task": ("ClassificationTask",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AppliedErasure",
    "ClassificationRun",
    "ClassificationTask",
    "ClassifierConfig",
    "EraseRequest",
    "Erasure",
    "RunConfig",
    "classify",
    "compose",
    "difference",
    "export_lora",
    "interference",
    "load_model",
    "merge",
    "methods",
    "run",
    "scale",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
