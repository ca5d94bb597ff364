"""Concept erasure for diffusers: make a model forget, and measure what it still knows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from erase.erasure.algebra import compose, difference, export_lora, interference, merge, scale
from erase.erasure.erasure import AppliedErasure, Erasure
from erase.methods import methods
from erase.models.opening import load_model
from erase.prompts.request import EraseRequest
from erase.tasks.classification.task import ClassificationTask

if TYPE_CHECKING:
    from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
    from erase.runs.erase import RunConfig, run

# Judges and plots come with these, and take over a second, so they wait until they are asked for.
_RUNNERS = {
    "ClassificationRun": "runs.classify",
    "ClassifierConfig": "runs.classify",
    "classify": "runs.classify",
    "RunConfig": "runs.erase",
    "run": "runs.erase",
}

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
    if name not in _RUNNERS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_RUNNERS[name]}"), name)
