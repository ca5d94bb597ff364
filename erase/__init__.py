"""Concept erasure for diffusers: make a model forget, and measure what it still knows."""

from erase.erasure import AppliedErasure, Erasure
from erase.methods import methods
from erase.models import load_model
from erase.request import EraseRequest
from erase.runner import RunConfig, run

__all__ = [
    "AppliedErasure",
    "EraseRequest",
    "Erasure",
    "RunConfig",
    "load_model",
    "methods",
    "run",
]
