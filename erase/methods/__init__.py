"""Methods of erasure, one a file; what their registry holds is here by name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erase.methods.registry import Method, Needs, get_method, holding, preset_of, register
    from erase.methods.registry import serving as serving
    from erase.methods.registry import usual_training as usual_training

__all__ = [
    "Method",
    "Needs",
    "get_method",
    "holding",
    "methods",
    "preset_of",
    "register",
    "serving",
]


def methods() -> "dict[str, Method]":
    """All registered methods, by name."""
    from erase.methods.registry import METHODS

    return METHODS.all()


def __getattr__(name: str) -> Any:
    # The registry brings torch and diffusers, which naming a method in a list does not need.
    return getattr(import_module("erase.methods.registry"), name)
