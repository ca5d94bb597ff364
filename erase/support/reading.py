"""Files as others may have made them, checked before memory is taken for what they declare.

What is wrong with a file is a ValueError that begins with its name; readers say what it is for.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from erase.support.errors import first_line, refused

LARGEST_TEXT = 1 << 26  # bytes
LONGEST_NAME = 150  # letters of a tensor's


def require_file(path: Path, largest: int | None = None) -> None:
    """Raise ValueError for what is no plain file, such as a pipe, or is of more bytes than that."""
    if not path.is_file():
        raise ValueError(f"{path.name} is {'no plain file' if path.exists() else 'missing'}")
    if largest and path.stat().st_size > largest:
        raise ValueError(f"{path.name} is larger than {largest >> 10} kB")


def read_text(path: Path, largest: int = LARGEST_TEXT, newline: str | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    newline: as of `open`, by default all kinds of ends of lines become the one.
    """
    require_file(path, largest)
    with (
        refused(f"{path.name} is no UTF-8 text", "", OSError, ValueError),
        open(path, encoding="utf-8-sig", newline=newline) as opened,
    ):
        return opened.read()


def read_json(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds."""
    text = read_text(path, largest)
    with refused(f"{path.name} is no JSON", "", ValueError, RecursionError):
        return json.loads(text)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, all of them finite, and its metadata."""
    require_file(path)
    try:
        with safe_open(path, "pt") as stored:
            names = list(stored.keys())
            if long := [name for name in names if len(name) > LONGEST_NAME]:
                raise ValueError(f"the name of a tensor has {len(long[0])} letters")
            tensors = {name: stored.get_tensor(name) for name in names}
            metadata = stored.metadata() or {}
    except Exception as error:  # of files, and of whatever a header may declare
        said = first_line(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{path.name} is not whole: {said}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{path.name} holds numbers that are not finite, in {name}")
    return tensors, metadata
