"""Checks of typed configs, one clear sentence each."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


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


def require_choices(config: Any) -> None:
    """Raise ValueError naming the first field whose value its Literal type does not list."""
    for name, kind in get_type_hints(type(config)).items():
        known, value = get_args(kind), getattr(config, name)
        if get_origin(kind) is Literal and value not in known:
            named = ", ".join(map(repr, known))
            raise ValueError(f"{name} is {value!r}; choose one of {named}.")


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
