"""Break files of every kind that the library reads, and see that each is refused or harmless.

A case is fine if what was read is finite where it is put in force, or if it was refused by one
sentence that names the file and the mend. Anything else is a fault. The same seed breaks the same.
"""

import argparse
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz_files import mutate_file
from fuzz_kinds import KINDS

LONGEST = 300  # letters of a sentence
SECONDS = 20  # of one case
MEMORY = 1 << 31  # bytes beyond what the imports take
ORDER = [name for name, kind in KINDS.items() for _ in range(kind.share)]


class TimedOut(BaseException):
    """A case did not end."""


@dataclass(frozen=True)
class Case:
    """What came of one: succeeded, refused or fault, and what was said or went wrong."""

    seed: int
    number: int
    kind: str
    result: str
    said: str


def kind_of(number: int) -> str:
    """The kind of a case of this number, whatever its seed: all kinds among any hundred."""
    return ORDER[number * 37 % len(ORDER)]


def run_case(seed: int, number: int, place: Path) -> Case:
    """Break one file of a good folder under `place` and read it."""
    name = kind_of(number)
    kind, rng = KINDS[name], Random(f"{seed}:{number}")
    folder, files = place / "case", read_files(place / "good" / name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place / "good" / name, folder)
    changed = folder / rng.choice(files)
    mutate_file(rng, changed)
    result, said = "succeeded", ""
    try:
        with _limited():
            opened = None
            try:
                opened = kind.read(folder, changed)
            except ValueError as error:
                result, said = "refused", _sentence(error, folder.name)
            if opened is not None:
                try:
                    kind.use(opened, folder)
                except ValueError as error:
                    result, said = "refused", _sentence(error, "")
    except (Exception, TimedOut) as error:
        result, said = "fault", f"{type(error).__name__}: {str(error)[:400]}{_where(error)}"
    if (place / "ran").exists():
        (place / "ran").unlink()
        result, said = "fault", "code of the folder ran"
    return Case(seed, number, name, result, said)


UNREAD = {"", ".md", ".py"}  # no file is read of these, or it is a folder


def read_files(folder: Path) -> list[Path]:
    """The files of a folder that the library reads, within it."""
    found = (path for path in folder.rglob("*") if path.suffix not in UNREAD)
    return sorted(path.relative_to(folder) for path in found)


def _sentence(error: ValueError, name: str) -> str:
    """What it says; an AssertionError unless it is one sentence with a mend that holds `name`."""
    said = str(error)
    assert len(said) <= LONGEST, f"{len(said)} letters: {said[:200]}"
    assert said.isprintable(), f"not one line: {said!r}"
    assert name in said, f"no name of the file: {said}"
    assert ";" in said or ", or" in said, f"no mend: {said}"
    return said


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/erase/" in f.filename]
    last = frames[-1] if frames else None
    return f" ({Path(last.filename).name}:{last.lineno})" if last else ""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimedOut(f"not done after {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 5 * SECONDS)  # for what waits
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def good_folders() -> Iterator[Path]:
    """A place with a good folder of every kind, and limits on what reading may take."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    with tempfile.TemporaryDirectory() as parent, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        place = Path(parent)
        for name, kind in KINDS.items():
            (place / "good" / name).mkdir(parents=True)
            folder = place / "good" / name
            kind.make(folder)
            for file in read_files(folder):  # as they are, all are read
                kind.use(kind.read(folder, folder / file), folder)
        try:
            taken = _status("VmData")
            resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, limits[1]))
            yield place
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, limits)
            logging.disable(logging.NOTSET)


def _status(field: str) -> int:
    """A figure of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def run_cases(
    place: Path, seeds: Sequence[int], cases: int, kinds: Sequence[str]
) -> dict[str, tuple[list[Case], float, int]]:
    """By kind, what came of its share of so many cases a seed, in how many seconds, peak memory."""
    found = {}
    for kind in kinds:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is of this kind alone
        start = time.perf_counter()
        numbers = [number for number in range(cases) if kind_of(number) == kind]
        outcomes = [run_case(seed, number, place) for seed in seeds for number in numbers]
        found[kind] = outcomes, time.perf_counter() - start, _status("VmHWM")
        print(table({kind: found[kind]}), file=sys.stderr)  # as far as it is
    return found


def table(found: dict[str, tuple[list[Case], float, int]]) -> str:
    """A row a kind and one of all, and below them the faults, each with what runs it again."""
    lines = ["| kind | cases | succeeded | refused | faults | seconds | peak MB |"]
    lines.append("| --- " * 7 + "|")
    rows = [*found.items(), ("all", _total(found))]
    for kind, (outcomes, seconds, peak) in rows:
        results = [case.result for case in outcomes]
        counts = [results.count(result) for result in ("succeeded", "refused", "fault")]
        cells = [kind, len(results), *counts, f"{seconds:.0f}", peak >> 20]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    faults = [case for case in _total(found)[0] if case.result == "fault"]
    lines += [f"--case {case.seed}:{case.number} {case.kind}: {case.said}" for case in faults]
    return "\n".join(lines)


def _total(
    found: dict[str, tuple[list[Case], float, int]],
) -> tuple[list[Case], float, int]:
    outcomes = [case for cases, *_ in found.values() for case in cases]
    parts = list(found.values())
    return outcomes, sum(part[1] for part in parts), max(part[2] for part in parts)


def main() -> int:
    """Run what is asked for; 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--cases", type=int, default=1000, help="a seed, of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--case", help="SEED:NUMBER, to run one alone")
    parser.add_argument("--refusals", action="store_true", help="tell the sentences too")
    options = parser.parse_args()
    with good_folders() as place:
        if options.case:
            case = run_case(*map(int, options.case.split(":")), place)
            print(f"{case.kind}, {case.result}: {case.said}")
            return case.result == "fault"
        found = run_cases(place, options.seed, options.cases, options.kinds)
        print(table(found))
        if options.refusals:
            print("\n".join(f"{c.seed}:{c.number} {c.said}" for c in _total(found)[0] if c.said))
        return any(case.result == "fault" for case in _total(found)[0])


if __name__ == "__main__":
    raise SystemExit(main())
