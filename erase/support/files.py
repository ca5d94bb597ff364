"""Files and folders that appear whole or not at all, folders never in the place of another's."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def expanded(path: str | Path) -> Path:
    """The path with `~` as the user's home."""
    return Path(os.path.expanduser(path))


def check_writable(folder: Path, ours: Sequence[str] = ()) -> None:
    """Raise ValueError if `folder` cannot be made, or holds anything and is not one of ours.

    One of ours holds the first name in `ours`, and none that is not in it.
    """
    folder = expanded(folder)
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
    path = expanded(path)
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
def alone(output: Path) -> Iterator[None]:
    """While in force, no other process of this machine is here with the same `output`.

    Raises ValueError if one is. A process that dies leaves the place free.
    """
    name = hashlib.sha256(str(output).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"erase-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another run is writing {output}; wait for it, or name another output.") \
            from error  # fmt: skip
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def replaced_folder(folder: Path, ours: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name on success and goes on failure.

    A folder that is one of ours, as `check_writable` says, is replaced, any other refused.
    """
    folder = expanded(folder).resolve()
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
    path = expanded(path)
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
