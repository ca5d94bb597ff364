"""The same runs in two checkouts: which bytes, figures, flags and configs differ.

Run: `python benchmarks/yardstick.py --before CHECKOUT --after CHECKOUT [--only NAME ...]`. Every
step of a case (yardstick_cases.py) runs on the CPU with one thread, in a process of its own that
has the checkout first on its path, in a new folder. Compared are all files it leaves, what it
prints and how it ends; of figures all but seconds and memory.

Results are kept in --cache, by what a checkout holds, so that each is run once. The inputs there
(tiny pipelines of every family, a fast copy of the bundled model, a classifier, pictures, configs,
flags) are made once, by --before. Exits with 1 if there is a difference that WANTED does not list.
"""

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yardstick_cases import Step, cases
from yardstick_steps import STEPS

# "CASE KEY", with a shell's wildcards, and why it may differ.
WANTED: dict[str, str] = {
    "* *.training.checkpoints": "where run state lies is no part of a training's config",
    "flags *.training.checkpoints=": "the flag is refused with one sentence",
    "* *erasure.json:run": "this digest is of the config, which held where run state lies",
    "[!dc]* *erasure.json:report.table": "the finished table is kept, as classifiers' is",
    "refusals 5:said": "a model that is not there is missed before anything is opened",
}

TIMES = {"seconds", "peak_memory_bytes"}  # of any two runs they differ
ENDED, USUAL = re.compile(r"\d+:exit$"), (0, 2, 130)
SECONDS = re.compile(r"\d+(\.\d+)? s\b")
TEXTS, LARGEST_JSON, LIMIT_S, SHOWN = (".md", ".txt", ".out"), 400_000, 900, 6
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "yes", "CUDA_VISIBLE_DEVICES": "",
    "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
Record = dict[str, Any]


def work(checkout: Path, cache: Path, results: Path, names: list[str]) -> None:
    """Run these cases of this process' checkout; it is imported once, and forked for each step."""
    _import_all(checkout)
    for name in names:
        started, found = time.perf_counter(), {}
        with TemporaryDirectory() as path:
            folder = Path(path)
            (folder / "inputs").symlink_to(cache / "inputs")
            for number, step in enumerate(cases()[name][1]):
                found |= _ended(step, folder, str(number))
            found |= record(folder)
        results.mkdir(parents=True, exist_ok=True)
        partial = results / f".{os.getpid()}"
        partial.write_text(json.dumps(found, sort_keys=True))
        partial.rename(_result(results, name))
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def make_inputs(checkout: Path, cache: Path) -> None:
    """Write the cache's inputs, whole or not at all."""
    _import_all(checkout)
    with TemporaryDirectory(dir=cache) as path:
        folder = Path(path)
        (folder / "inputs").mkdir()
        if _ended(("#inputs",), folder, "0")["0:exit"]:
            raise SystemExit("The inputs could not be made.")
        (folder / "inputs").rename(cache / "inputs")


def _import_all(checkout: Path) -> None:
    import erase

    if Path(erase.__file__).parents[1] != checkout:
        raise SystemExit(f"{erase.__file__} was imported, which is not of {checkout}.")
    for module in pkgutil.walk_packages(erase.__path__, "erase."):
        if not module.name.startswith(("erase.app.", "erase.__main__")):
            importlib.import_module(module.name)


def _ended(step: Step, folder: Path, number: str) -> Record:
    """Run a step; how it ended, and what a refused one said last."""
    child = os.fork()
    if not child:
        _be(step, folder, number)
    if step[0] == "#stopped":
        _stop_after_checkpoint(child, folder)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (folder / f"{number}.err").read_text().strip().splitlines()[-1:]
    if code < 0:
        raise SystemExit(f"{' '.join(step)}\nwas killed by signal {-code}.")
    if code not in USUAL:
        print(f"{' '.join(step)}\nended with {code}: {said}", file=sys.stderr)
    return {f"{number}:exit": code} | ({f"{number}:said": said} if code == 2 else {})


def _be(step: Step, folder: Path, number: str) -> None:
    """End this process as a step does."""
    code = 1
    try:
        os.chdir(folder)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        signal.alarm(LIMIT_S)
        kind = step[0].startswith("#")
        code = STEPS[step[0][1:] if kind else "erase"](*step[kind:])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stop_after_checkpoint(child: int, folder: Path) -> None:
    while not any(folder.glob(".*/checkpoint-*")):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)


def record(folder: Path) -> Record:
    """What a folder holds, by file, and by key in JSON: values, texts, SHA-256 of all else."""
    found: Record = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or path.is_dir() or path.suffix == ".err":
            continue
        if path.suffix == ".json" and path.stat().st_size < LARGEST_JSON:
            values = flat(json.loads(path.read_text()))
            found |= {f"{name}:{key}": value for key, value in values}
        elif path.suffix in TEXTS:
            found[name] = SECONDS.sub("N s", path.read_text())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested JSON with their keys joined by dots, but for times."""
    if not isinstance(value, (Mapping, list)) or not value:
        yield key, value
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, part in parts:
        if name not in TIMES:
            yield from flat(part, f"{key}.{name}" if key else str(name))


def differing(before: Record, after: Record) -> list[str]:
    """The keys of what is not the same, or in one alone."""
    missing = object()
    keys = sorted({*before, *after})
    return [key for key in keys if str(before.get(key, missing)) != str(after.get(key, missing))]


def results_of(checkout: Path, args: argparse.Namespace, names: list[str]) -> dict[str, Record]:
    """The record of every case, from the cache or run now."""
    if not (args.cache / "inputs").exists():
        _spawn(checkout, args.cache)
    libraries = [version(name).encode() for name in LIBRARIES]
    files = _files(checkout, "erase", "configs", "tests/conftest.py", "tests/hosts.py")
    files += _files(args.cache, "inputs")
    results = args.cache / _digest([*libraries, *files])
    missing = [name for name in names if not _is_whole(_result(results, name))]
    if missing:
        _spawn(checkout, args.cache, str(results), *missing)
    return {name: json.loads(_result(results, name).read_text()) for name in names}


def _spawn(checkout: Path, *words: Path | str) -> None:
    path = os.pathsep.join(str(checkout / name) for name in ("", "tests", "scripts"))
    command = [sys.executable, __file__, "--inside", str(checkout), *map(str, words)]
    subprocess.run(command, env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, check=True)


def _files(folder: Path, *names: str) -> list[bytes]:
    found = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
    kept = [p for p in sorted(found) if p.is_file() and "__pycache__" not in p.parts]
    return [part for p in kept for part in (str(p.relative_to(folder)).encode(), p.read_bytes())]


def _result(results: Path, name: str) -> Path:
    return results / f"{name}-{_digest([str(cases()[name]).encode()])}.json"


def _is_whole(result: Path) -> bool:
    """Whether there is a result, and of no step that broke, which may be the yardstick's fault."""
    if not result.exists():
        return False
    ends = (value for key, value in json.loads(result.read_text()).items() if ENDED.match(key))
    return all(code in USUAL for code in ends)


def _digest(parts: Iterable[bytes]) -> str:
    joint = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(joint).hexdigest()[:12]


def table(before: dict[str, Record], after: dict[str, Record]) -> tuple[str, bool]:
    """Markdown with a row a case, the wanted differences under it; whether there are no others."""
    rows, clean = ["| case | compared | before and after |", "| --- | --- | --- |"], True
    wanted = dict.fromkeys(WANTED, 0)
    for name, (compared, _) in cases().items():
        if name not in before:
            continue
        keys = differing(before[name], after[name])
        for pattern in WANTED:
            matched = [key for key in keys if fnmatch(f"{name} {key}", pattern)]
            wanted[pattern] += len(matched)
            keys = [key for key in keys if key not in matched]
        said = f"differ in {len(keys)} of {len(before[name])}: " + ", ".join(keys[:SHOWN])
        said += ", ..." if len(keys) > SHOWN else ""
        rows.append(f"| {name} | {compared} | {said if keys else 'equal'} |")
        clean &= not keys
    rows += [f"\nWanted ({wanted[p]} keys), `{p}`: {WANTED[p]}" for p in WANTED if wanted[p]]
    return "\n".join(rows), clean


def main() -> int:
    """Compare, or as `--inside` do the work in one checkout."""
    if sys.argv[1:2] == ["--inside"]:
        checkout, cache, *more = map(Path, sys.argv[2:5])
        work(checkout, cache, *more, sys.argv[5:]) if more else make_inputs(checkout, cache)
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout's folder")
    parser.add_argument("--after", type=Path, required=True, help="another's")
    parser.add_argument("--only", nargs="+", default=["*"], help="cases, with wildcards")
    parser.add_argument("--json", type=Path, help="where to write the values that differ")
    parser.add_argument("--cache", type=Path, default=Path("runs/yardstick"))
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    names = [name for name in cases() if any(fnmatch(name, one) for one in args.only)]
    before, after = (results_of(c.resolve(), args, names) for c in (args.before, args.after))
    text, clean = table(before, after)
    print(text)
    if args.json:
        found = {
            name: {key: [before[name].get(key), after[name].get(key)] for key in keys}
            for name in names
            if (keys := differing(before[name], after[name]))
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return not clean


if __name__ == "__main__":
    sys.exit(main())
