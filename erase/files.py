"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: Path, marker: str) -> None:
    """Raise ValueError if `folder` cannot be made, or holds something other than our `marker`."""
    ours = (folder / marker).exists()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"The output {folder} exists and holds other things; name a new one.")
    ancestor = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        tempfile.TemporaryDirectory(dir=ancestor).cleanup()
    except OSError as error:
        raise ValueError(
            f"The output {folder} cannot be written ({error.strerror}); name another folder."
        ) from error


@contextmanager
def replaced_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name on success and goes on failure."""
    check_writable(folder, marker)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
