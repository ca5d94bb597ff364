"""The options of methods and attacks as a form shows them: numbers, switches and choices."""

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from erase.app.settings import Limits, require_one_of, require_types
from erase.runs.calibrate import with_setting
from erase.support.errors import first_line
from erase.training.config import WATCHING


@dataclass(frozen=True)
class Option:
    """One field of a config, which may lie in a config within: `training.learning_rate`.

    kind: int, float, bool, or the tuple of choices. Texts are left out, for they name files.
    """

    key: str
    kind: type | tuple[str, ...]
    default: Any
    about: str


def options_of(config: type, within: str = "") -> list[Option]:
    """All options of a config with its defaults, in order; none that writes beside the result."""
    hints, default, found = get_type_hints(config), config(), []
    about = {arg.arg_name: arg.description or "" for arg in parse_from_object(config).params}
    for field in (f for f in fields(config) if f.name not in WATCHING):
        key, value = f"{within}{field.name}", getattr(default, field.name)
        if is_dataclass(value):
            found += options_of(type(value), f"{key}.")
        elif kind := _kind_of(hints[field.name]):
            found.append(Option(key, kind, value, about.get(field.name, "")))
    return found


def _kind_of(hint: Any) -> type | tuple[str, ...] | None:
    """What a form can ask for; unions are taken at the first kind that it can."""
    if hint in (int, float, bool):
        return hint
    if get_origin(hint) is Literal and isinstance(get_args(hint)[0], str):
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in map(_kind_of, get_args(hint)) if kind]
        choices = [choice for kind in kinds if isinstance(kind, tuple) for choice in kind]
        return tuple(choices) or next(iter(kinds), None)
    return None


def with_options(config: Any, text: str, limits: Limits) -> Any:
    """The config with the values of a JSON object, `{"density": 0.1}`; ValueError if one is off."""
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"The options are no JSON ({first_line(error)}); give {{}} for none."
        ) from error
    if not isinstance(values, Mapping):
        raise ValueError("The options are no JSON object; give {} for none.")
    known = {option.key: option for option in options_of(type(config))}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"There is no option {key}; choose of {', '.join(known) or 'none'}.")
        config = with_setting(config, key, _checked(known[key], value, limits))
    return config


def _checked(option: Option, value: Any, limits: Limits) -> Any:
    kind = option.kind
    if isinstance(kind, tuple):
        require_one_of(option.key, value, kind)
        return value
    require_types({option.key: value}, {option.key: kind})
    most = max(limits.effort, option.default or 0)
    if kind is int and abs(value) > most:
        raise ValueError(f"{option.key} is {value}; at most {most} is done here.")
    return int(value) if kind is int else value
