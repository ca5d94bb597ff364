"""Concept erasure for diffusers: make a model forget, and measure what it still knows."""

from erase.algebra import compose, difference, export_lora, interference, merge, scale
from erase.classification_runner import ClassificationRun, ClassifierConfig, classify
from erase.erasure import AppliedErasure, Erasure
from erase.methods import methods
from erase.models import load_model
from erase.request import EraseRequest
from erase.runner import RunConfig, run
from erase.tasks.classification import ClassificationTask

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
