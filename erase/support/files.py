"""Files and folders that appear whole or not at all, folders never in the place of another's."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_writable(folder: Path, ours: Sequence[str] = ()) -> None:
    """Raise ValueError if `folder` cannot be made, or holds anything and is not one of ours.

    One of ours holds the first name in `ours`, and none that is not in it.
    """
    try:
        others = [path.name for path in folder.iterdir()] if folder.exists() else []
        parent = next(parent for parent in folder.parents if parent.exists())
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise ValueError(
            f"The output {folder} cannot be written ({error.strerror}); name another folder."
        ) from error
    if others and (set(others) - set(ours) or ours[0] not in others):
        raise ValueError(f"The output {folder} exists and holds other things; name a new one.")


def check_file_writable(path: Path) -> None:
    """Raise ValueError if neither the file nor a folder for it can be made."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise ValueError(
            f"The output {path} cannot be written ({error.strerror}); name another file."
        ) from error


@contextmanager
def replaced_folder(folder: Path, ours: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name on success and goes on failure.

    A folder that is one of ours, as `check_writable` says, is replaced, any other refused.
    """
    folder = folder.resolve()
    check_writable(folder, ours)
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that takes its place on success and goes on failure."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write one file in UTF-8, whole or not at all."""
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, record: Any) -> None:
    """Write one JSON file with sorted keys, whole or not at all."""
    write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order that a person counts in: 2.png before 10.png."""
    return sorted(names, key=_counted)


def _counted(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
