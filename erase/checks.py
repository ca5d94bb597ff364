"""Checks of typed configs, one clear sentence each."""

from typing import Any


def require_positive(config: Any, *names: str) -> None:
    """Raise ValueError naming the first of the fields that is not above zero."""
    for name in names:
        value = getattr(config, name)
        if value <= 0:
            raise ValueError(f"{name} is {value}; give a number above 0.")


def require_lists(config: Any, *names: str) -> None:
    """Raise ValueError if any of these fields is one text where several are meant."""
    for name in names:
        if isinstance(getattr(config, name), str):
            raise ValueError(f"{name} is one text; give a list.")


def reason_of(error: Exception) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
