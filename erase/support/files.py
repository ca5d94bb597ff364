"""Files and folders that appear whole or not at all, folders never in the place of another's.

Files of others are checked before memory is taken for what they declare; what is wrong with one is
a ValueError that begins with its name, and readers say what it is for.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erase.support.errors import first_line, refused

PATIENCE = 60.0  # seconds, with another that writes the same file
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
LARGEST_TEXT = 1 << 26  # bytes
LONGEST_NAME = 150  # letters of a tensor's


def expanded(path: str | Path) -> Path:
    """The path with `~` as the user's home."""
    return Path(os.path.expanduser(path))


def check_writable(folder: Path, ours: Sequence[str] = ()) -> None:
    """Raise ValueError if `folder` cannot be made, or holds anything and is not one of ours.

    One of ours holds the first name in `ours`, and none that is not in it.
    """
    folder = put_back(expanded(folder))
    with _writing(folder, "folder"):
        others = [path.name for path in folder.iterdir()] if folder.exists() else []
        _try(folder)
    if others and (set(others) - set(ours) or ours[0] not in others):
        raise ValueError(f"The output {folder} exists and holds other things; name a new one.")


def check_holds_files(folder: Path) -> None:
    """Raise ValueError if no file can be made in the folder, which need not be there."""
    with _writing(folder, "folder"):
        _try(folder / "any")


def check_file_writable(path: Path) -> None:
    """Raise ValueError if the file is there, or neither it nor a folder for it can be made."""
    path = expanded(path).absolute()
    with _writing(path, "file"):
        if path.exists():
            raise FileExistsError(0, "it is there already")
        _try(path)


@contextmanager
def _writing(path: Path, kind: str) -> Iterator[None]:
    """What keeps the output from being written is told in a ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"The output {path} cannot be written ({error.strerror}); name another {kind}."
        ) from error


def _try(path: Path) -> None:
    """Make a folder where `path` or the first folder on the way to it will be, and remove it."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    trial = parent / f".{path.name}.trial"
    with suppress(FileExistsError):
        trial.mkdir()
    with suppress(FileNotFoundError):
        trial.rmdir()


@contextmanager
def alone(output: Path, patience: float = 0.0) -> Iterator[None]:
    """While in force, no other process or thread of this machine is here with the same `output`.

    Raises ValueError if one is, and stays for so many seconds. Who is here may come again, and go
    on inside. A process that dies leaves the place free.
    """
    output = expanded(output).resolve()
    if not _held.get().isdisjoint((output, *output.parents)):
        yield
        return
    name = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"erase-{name}.lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise ValueError(f"Another run is writing {output}; wait for it, or name another output.") \
            from error  # fmt: skip
    token = _held.set(_held.get() | {output})
    try:
        yield
    finally:
        _held.reset(token)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def replaced_folder(folder: Path, ours: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name on success and goes on failure.

    A folder that is one of ours, as `check_writable` says, is replaced, any other refused. It lies
    on the disk before it takes the name. Raises OSError naming `folder` where the disk fails.
    """
    folder = expanded(folder).resolve()
    partial = _beside(folder, "partial")
    with alone(folder), _named(folder, partial), none_empty(partial):
        check_writable(folder, ours)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            _to_disk(partial)
            _take_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, folder: Path) -> None:
    replaced = _beside(folder, "replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def put_back(folder: Path) -> Path:
    """The folder; if a process died between taking it away and putting the new one there, again."""
    replaced = _beside(folder, "replaced")
    if replaced.exists() and not folder.exists():
        with suppress(ValueError), alone(folder):
            replaced.rename(folder)
    return folder


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that takes its place on success and goes on failure.

    It lies on the disk before it takes the name. Raises OSError naming `path` where the disk fails.
    """
    path = expanded(path).absolute()
    partial = _beside(path, "partial")
    with alone(path, PATIENCE), _named(path, partial):
        try:
            yield partial
            _to_disk(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


@contextmanager
def _named(path: Path, partial: Path) -> Iterator[None]:
    """What the disk refuses of `partial`, or of nothing it names, it refuses of `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        place, told = getattr(error, "filename", None), re.search(r"os error (\d+)", str(error))
        if place and not str(place).startswith(str(partial)):
            raise
        number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
        reason = os.strerror(number) if number else first_line(error)
        raise OSError(number, reason, str(path)) from error


@contextmanager
def none_empty(folder: Path) -> Iterator[None]:
    """On failure, `folder`, folders in it and those made on the way to it go if they are empty."""
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for one in (*folder.glob("*"), folder, *made):
            with suppress(OSError):
                one.rmdir()
        raise


def _to_disk(path: Path) -> None:
    """Have the disk hold a file, or a folder with all in it."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync(inner)
    _sync(path)


def _sync(path: Path) -> None:
    """As `_to_disk`, of a file, or of the names in a folder where the system can."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
