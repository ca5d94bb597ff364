"""Do everything that erase does on one device: the seconds and peak memory of each part.

Run: `python scripts/gpu_check.py --device cuda --dtypes float32 bfloat16 --out gpu_check`, with
`--model NAME` for a pipeline of your own instead of the bundled and the tiny ones; docs/gpu.md.
Writes gpu_check.json and prints a table; a part that fails is a row that says why, and the exit
status is then 1. Settings are the smallest there are: this tells what works, not how well it does.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from erase.evaluate.tables import markdown_table
from erase.support.distributed import own_device
from erase.support.errors import first_line
from erase.support.files import write_json
from erase.support.memory import peak_memory

# The tests' builders, which alone would stay offline and compute in one thread.
os.environ |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": str(os.cpu_count())} | os.environ
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from every_part import AT_HAND, OnClassifier, OtherCommands, on_pipeline


def measured_row(
    what: str, on: str, dtype: str, device: str, work: Callable[[], Any]
) -> dict[str, Any]:
    """Seconds and peak memory of some work and, if it failed, why."""
    card, error, started = torch.device(device).type == "cuda", "", time.perf_counter()
    try:
        if card:
            torch.cuda.reset_peak_memory_stats(device)
        work()
        if card:
            torch.cuda.synchronize(device)
    except Exception as raised:
        error = f"{type(raised).__name__}: {first_line(raised)}"
    found = {
        "part": what, "on": on, "dtype": dtype, "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if card else peak_memory(),
        "error": error,
    }  # fmt: skip
    print(*found.values(), flush=True)
    return found


def all_rows(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every part that is asked for."""

    def rows(on: str, dtype: str, open_: Callable[[Path], Any]) -> Iterator[dict[str, Any]]:
        ready: list[Any] = []
        place = folder / f"{on} {dtype}".replace("/", "_")
        made = partial(measured_row, on=on, dtype=dtype, device=options.device)
        yield made("open", work=lambda: ready.append(open_(place)))
        for what, work in ready[0].parts() if ready else ():
            if any(word in what for word in options.only):
                yield made(what, work=work)

    for dtype in options.dtypes:
        for name in options.model:
            yield from rows(name, dtype, partial(on_pipeline, name, dtype, options.device))
    yield from rows("classifier", "float32", lambda _: OnClassifier(options.device))
    yield from rows("other commands", "float32", partial(OtherCommands, options.device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, write and print; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--model", nargs="*", default=AT_HAND, help="instead of those at hand")
    parser.add_argument("--only", nargs="+", default=[""], help="words of the parts' names")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    options = parser.parse_args(arguments)
    try:
        options.device = own_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        rows = list(all_rows(options, Path(folder)))
    card = torch.device(options.device).type == "cuda"
    report = {
        "card": torch.cuda.get_device_name(options.device) if card else platform.machine(),
        "device": options.device, "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "rows": rows,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "gpu_check.json", report)
    cells = [[*map(str, row.values())] for row in rows]
    print(markdown_table([list(rows[0]), *cells]))
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
