"""The base of every config: its fields' types say what each may be, and it checks them."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import get_annotations
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

LARGEST = 3.4e38  # what float32, in which weights are computed, can hold
MOST = 2**31 - 1  # of anything that is counted; a seed may be any whole number
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Within:
    """What a number must be, and the words that ask for it."""

    holds: Callable[[float], bool]
    wanted: str


Positive = Annotated[Number, Within(lambda number: number > 0, "a number above 0")]
NotNegative = Annotated[Number, Within(lambda number: number >= 0, "0 or more")]
Share = Annotated[float, Within(lambda number: 0 < number <= 1, "a share in (0, 1]")]
ShareOrNone = Annotated[float, Within(lambda number: 0 <= number <= 1, "a share in [0, 1]")]
PartShare = Annotated[float, Within(lambda number: 0 < number < 1, "a share in (0, 1)")]


@dataclass(frozen=True)
class Config:
    """A config without fields; every one is a frozen dataclass that derives from it.

    Fields may be numbers, ranges of them such as `Positive[int]`, bool, str, `Literal`, unions,
    other classes, and `Sequence` or `Mapping` of these. Raises ValueError naming the first field
    whose value is not of its type; a number must be finite.
    """

    _kinds: ClassVar[dict[str, Any]] = {}  # of the fields, with their ranges

    def __init_subclass__(cls) -> None:
        """Leave plain types in the annotations, of which flags, help and forms are made."""
        super().__init_subclass__()
        own, plain = get_annotations(cls), get_type_hints(cls)
        ranged, cls._kinds = get_type_hints(cls, include_extras=True), {}
        for base in reversed(cls.__mro__[1:]):  # whose annotations are plain by now
            cls._kinds |= vars(base).get("_kinds", {})
        cls._kinds |= {name: ranged[name] for name in own}
        cls.__annotations__ = {name: plain[name] for name in own}

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require_kind(field.name, value, self._kinds[field.name])
            if isinstance(value, str) and value.startswith("~"):  # only a path begins so
                object.__setattr__(self, field.name, os.path.expanduser(value))


@dataclass(frozen=True, kw_only=True)
class OwnFiles(Config):
    """Which of a model's own files are read.

    Args:
        variant: of the files of weights, as fp16.
        revision: a branch, tag or commit of a hub id.
        model_config: a pipeline folder with a single file's configs.
    """

    variant: str = ""
    revision: str = ""
    model_config: str = ""

    @property
    def own_files(self) -> dict[str, Any]:
        """What is said of them, so that they are found again."""
        return {one.name: said for one in fields(OwnFiles) if (said := getattr(self, one.name))}


def require_kind(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError, saying what to give instead, if `value` is not of the type `kind`."""
    if mend := _mend(value, kind):
        raise ValueError(f"{name} is {value!r:.80}; {mend}.")


def _mend(value: Any, kind: Any) -> str:
    """What to give instead of a value that is not of the type `kind`; empty if it is."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if origin is Annotated:
        plain, within = parts
        if mend := _mend(value, plain) or ("" if within.holds(value) else f"give {within.wanted}"):
            return mend
        return f"give a number up to {MOST}" if plain is int and value > MOST else ""
    if origin is Literal:  # exactly, for True equals 1
        known = any(type(value) is type(part) and value == part for part in parts)
        return "" if known else f"choose one of {', '.join(map(repr, parts))}"
    if origin in (Union, UnionType):
        mends = [_mend(value, part) for part in parts]
        return "" if "" in mends else " or ".join(mends)
    if kind in (int, float):
        return _mend_number(value, kind)
    if origin in (Sequence, Mapping):
        return _mend_items(value, origin, parts)
    return "" if isinstance(value, kind) else f"give {WORDS.get(kind) or f'a {kind.__name__}'}"


def _mend_number(value: Any, kind: type) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return f"give {WORDS[kind]}"
    if not abs(value) < math.inf:  # NaN is not
        return "give a finite number"
    return "" if kind is int or abs(value) <= LARGEST else f"give a number up to {LARGEST:g}"


def _mend_items(value: Any, origin: type[Iterable[Any]], parts: Sequence[Any]) -> str:
    if isinstance(value, str) or not isinstance(value, origin):
        return f"give {WORDS[origin]}"
    items = value.values() if isinstance(value, Mapping) else value
    return next(filter(None, (_mend(item, parts[-1]) for item in items)), "")


WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    type(None): "nothing", Sequence: "a list", Mapping: "names with values",
}  # fmt: skip
