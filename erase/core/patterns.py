"""Choosing tensors by shell patterns over their canonical names."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

Value = TypeVar("Value")


def filter_names(
    tensors: Mapping[str, Value], include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, Value]:
    """Those whose name fits a pattern of `include` and none of `exclude`, as in `*attn2*`."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
