"""What the fuzzer does to a file: to what it holds, or to the file itself."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fuzz_mutations import BYTES, Rng, change_png, flip_bits, mutate_csv, mutate_json, mutate_yaml
from fuzz_tensors import SAFETENSORS

HUGE_FILE = 1 << 33  # bytes, of which the disk holds none
LARGE = 1 << 18  # bytes, which are not changed once more


def to_missing(rng: Rng, path: Path) -> None:
    """No file at all."""
    path.unlink()


def to_folder(rng: Rng, path: Path) -> None:
    """A folder of its name."""
    path.unlink()
    path.mkdir()


def to_pipe(rng: Rng, path: Path) -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def to_link(rng: Rng, path: Path) -> None:
    """A link to what is elsewhere, is not there, never ends, or is itself."""
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "../../outside", "nowhere", path.name]))


def to_huge(rng: Rng, path: Path) -> None:
    """Itself with nothing after it, for many gigabytes."""
    os.truncate(path, HUGE_FILE)


def to_another(rng: Rng, path: Path) -> None:
    """What another file beside it holds."""
    others = sorted(other for other in path.parent.iterdir() if other != path and other.is_file())
    if others:
        shutil.copyfile(rng.choice(others), path)


FILES: list[Callable[[Rng, Path], None]] = [
    to_missing, to_folder, to_pipe, to_link, to_huge, to_another,
]  # fmt: skip


def mutate_file(rng: Rng, path: Path) -> None:
    """Change a file in one to three ways of those that its name allows."""
    data, kinds = path.read_bytes(), list(BYTES)
    path.unlink()  # it may be one file with the good one
    if rng.random() < 0.08:
        path.write_bytes(data)
        rng.choice(FILES)(rng, path)
        return
    if path.suffix == ".json":
        kinds += [mutate_json] * 16
    if path.suffix == ".safetensors":
        kinds += SAFETENSORS * 5
    if path.suffix == ".yaml":
        kinds += [mutate_yaml] * 24
    if path.suffix == ".csv":
        kinds += [mutate_csv] * 16
    if path.suffix == ".png":
        kinds += [change_png] * 4
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if len(data) > LARGE:
            break
        try:
            data = rng.choice(kinds)(rng, data)
        except Exception:  # what was changed before is no such file any more
            data = flip_bits(rng, data)
    path.write_bytes(data)
