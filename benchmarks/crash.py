"""Kill, stop, starve and disturb the commands, and see that the output is whole or absent.

A try is at fault if the output is half-written, if the same command does not go on to the whole
one, if a traceback is told, if there is neither success nor one sentence, or if something stays
beside the output after that. The same seed tries the same; moments are shares of what a command
takes undisturbed, so that where they fall depends on the machine. Run as root, which may mount the
small disks: `python benchmarks/crash.py --seed 0 --kills 200`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from crash_runs import Ended, Job, commands, finished, make_inputs, require, small_disk

KILLED = ["run", "attack", "classify", "calibrate", "measure", "protocol"]
SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
COLUMNS = ["half-written", "stuck", "tracebacks", "untold", "strays"]


@dataclass(frozen=True)
class Try:
    """What one came to: which of the columns it is at fault in, and what was said."""

    what: str
    faults: Sequence[str] = ()
    said: str = ""


def judged(job: Job, what: str, ended: Ended, free: bool = False, killed: bool = False) -> Try:
    """Look at what a disturbed command left, and run the same again.

    free: whether it may have been disturbed after all was done. killed: whether it could not speak.
    """
    faults = ["half-written"] if job.half() else []
    faults += ["tracebacks"] if ended.traceback else []
    done = free and (job.name == "calibrate" or job.whole())
    faults += [] if ended.told or killed or done else ["untold"]
    job.refill()
    was_whole, again = job.whole(), job.run()
    refused = (was_whole and again.code == 2 and "exist" in again.said) or "already" in again.said
    whole = job.name == "calibrate" or job.whole()
    faults += [] if whole and (again.code == 0 or refused) else ["stuck"]
    faults += ["tracebacks"] if again.traceback else []
    faults += ["strays"] if job.strays() else []
    said = f"{ended.code}: {ended.said[-900:]} | {again.code}: {again.said[-900:]} {job.strays()}"
    return Try(f"{job.name}, {what}", sorted(set(faults)), said)


def killed_at_random(jobs: Mapping[str, Job], rng: Random, count: int) -> Iterable[Try]:
    """Signals at any moment."""
    for number in range(count):
        job, stop = jobs[KILLED[number % len(KILLED)]], rng.choice(SIGNALS)
        share = rng.random()
        job.prepare()
        process = job.start()
        time.sleep(share * job.seconds)
        with suppress(ProcessLookupError):
            os.kill(process.pid, stop)
        ended = finished(process)
        yield judged(job, f"{stop.name} at {share:.3f}", ended, True, stop == signal.SIGKILL)


def stopped_at_imports(jobs: Mapping[str, Job], rng: Random, count: int) -> Iterable[Try]:
    """SIGINT and SIGTERM to a fresh interpreter, once its own start is over."""
    for number in range(count):
        job, stop = jobs["run"], (signal.SIGINT, signal.SIGTERM)[number % 2]
        job.prepare()
        seconds = rng.uniform(0.3, 6)
        with open(job.place / "said", "w", encoding="utf-8") as said:
            process = subprocess.Popen([sys.executable, "-m", "erase", *job.words],
                                       stdout=said, stderr=said)  # fmt: skip
            time.sleep(seconds)
            process.send_signal(stop)
            code = process.wait()
        ended = Ended(code, (job.place / "said").read_text(encoding="utf-8"))
        yield judged(job, f"{stop.name} after {seconds:.1f} s of imports", ended)


def full_disks(jobs: Mapping[str, Job], rng: Random, count: int) -> Iterable[Try]:
    """A disk that takes part of the output, and then room."""
    names = [name for name in jobs if name not in ("calibrate", "forget-set")]
    for number in range(count):
        job = jobs[names[number % len(names)]]
        job.prepare()
        size = sum(map(len, job.files().values())) if job.name == "measure" else 0
        most = sum(map(len, job.steady.values()))
        kilobytes = max(4, int((size + rng.random() * most) / 1024))
        shutil.rmtree(job.output.parent)
        with small_disk(job.output.parent, kilobytes):
            with suppress(OSError):
                job.refill()
            if job.half():
                continue  # not even what was there before fits
            ended = job.run()
            os.system(f"mount -o remount,size=1g '{job.output.parent}'")
            yield judged(job, f"{kilobytes} kB", ended)


def read_only(jobs: Mapping[str, Job]) -> Iterable[Try]:
    """A folder that nothing can be written to, and then can."""
    for job in jobs.values():
        if job.name in ("calibrate", "measure"):
            continue
        job.prepare()
        with small_disk(job.output.parent, 1 << 20, "ro"):
            ended = job.run()
            os.system(f"mount -o remount,rw '{job.output.parent}'")
            yield judged(job, "a read-only folder", ended)


def vanished(jobs: Mapping[str, Job], rng: Random, count: int) -> Iterable[Try]:
    """The folder of the output is removed at any moment."""
    names = [name for name in jobs if name != "calibrate"]
    for number in range(count):
        job, share = jobs[names[number % len(names)]], rng.random()
        job.prepare()
        process = job.start()
        time.sleep(share * job.seconds)
        shutil.rmtree(job.output.parent, ignore_errors=True)
        ended = finished(process)
        job.output.parent.mkdir(exist_ok=True)
        yield judged(job, f"its folder goes at {share:.3f}", ended)


def damaged(jobs: Mapping[str, Job], rng: Random) -> Iterable[Try]:
    """What a killed command keeps to go on from is cut, emptied, filled or lost."""
    ways: dict[str, Callable[[Path], object]] = {
        "lost": Path.unlink,
        "emptied": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "filled": lambda path: path.write_bytes(rng.randbytes(path.stat().st_size)),
    }
    for name in ("run", "protocol"):
        for way, damage in ways.items():
            for which in ("one", "all"):
                job = jobs[name]
                job.prepare()
                kept = _kept_by_a_killed(job)
                for path in kept if which == "all" else [rng.choice(kept)]:
                    damage(path)
                yield judged(job, f"{which} of its files {way}", Ended(0, ""), killed=True)


def _kept_by_a_killed(job: Job) -> list[Path]:
    """The files of the state that a command leaves which is killed once there is some."""
    process = job.start()
    state = lambda: sorted(job.output.parent.glob(".out.*/*/*"))  # noqa: E731
    while not [path for path in state() if path.name[0] != "." and path.parent.name[0] != "."]:
        if os.waitpid(process.pid, os.WNOHANG)[0]:
            raise SystemExit(f"The benchmark itself failed: {job.name} kept nothing.")
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    finished(process)
    return [path for path in state() if path.parent.name[0] != "."]


def two_at_once(jobs: Mapping[str, Job]) -> Iterable[Try]:
    """Two of the same command with one output: one writes it, the other too or says a sentence."""
    for job in jobs.values():
        if job.name == "calibrate":
            continue
        job.prepare()
        both = [job.start(), job.start(name="said too")]
        one, other = (finished(process) for process in both)
        codes = sorted((one.code, other.code))
        ended = Ended(max(codes), one.said + other.said)
        require(codes[0] == 0 or ended.traceback, f"neither {job.name} was done: {ended.said}")
        yield judged(job, "two at once", ended)


def on_the_disk(jobs: Mapping[str, Job]) -> Iterable[Try]:
    """Everything that takes a name of the output was synced before, as a power failure needs it."""
    for job in jobs.values():
        if job.name == "calibrate":
            continue
        job.prepare()
        ended = job.run(_watch_renames)
        late = [line for line in ended.said.splitlines() if line.startswith("not synced")]
        found = judged(job, "renames", ended)
        yield Try(found.what, [*found.faults, *(["half-written"] if late else [])], str(late))


def _watch_renames() -> None:
    """Have this process say what takes a name before the disk holds it."""
    synced: set[tuple[int, int, int]] = set()
    sync, moves = os.fsync, (os.rename, os.replace)

    def state(path: str | int) -> tuple[int, int, int]:
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def noted(opened: int) -> None:
        sync(opened)
        synced.add(state(opened))

    def checked(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: str, target: str, **options: object) -> None:
            inner = [p for p in Path(source).rglob("*") if p.is_file()]
            for path in inner if Path(source).is_dir() else [Path(source)]:
                if ".replaced" not in str(target) and state(str(path)) not in synced:
                    print(f"not synced: {path} -> {target}", flush=True)
            move(source, target, **options)

        return moved

    os.fsync = noted
    os.rename, os.replace = map(checked, moves)


def unread(place: Path) -> Iterable[Try]:
    """Nobody reads what a command says, or the disk that it is written to is full."""
    for words in (["families"], ["methods"], ["--help"], ["run", "--help"], ["inspect", "none"]):
        for stream, shell in (("a closed pipe", "| true"), ("a full disk", "> /dev/full")):
            command = f"{sys.executable} -m erase {' '.join(words)} {shell}"
            ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], text=True,
                                 capture_output=True, cwd=place)  # fmt: skip
            ended = Ended(ran.returncode, ran.stderr)
            told = ended.told or "--help" in words
            faults = ["tracebacks"] * ended.traceback + ["untold"] * (not told)
            yield Try(f"{' '.join(words)} to {stream}", faults, f"{ended.code}: {ended.said}")


def table(rows: Mapping[str, Sequence[Try]]) -> str:
    """A row a kind, and below them what is at fault."""
    lines = [f"| what | tries | {' | '.join(COLUMNS)} |", "| --- " * (2 + len(COLUMNS)) + "|"]
    for name, tries in rows.items():
        counts = [sum(column in one.faults for one in tries) for column in COLUMNS]
        lines.append(f"| {' | '.join(map(str, (name, len(tries), *counts)))} |")
    bad = [one for tries in rows.values() for one in tries if one.faults]
    return "\n".join([*lines, *(f"{one.what}: {', '.join(one.faults)}; {one.said}" for one in bad)])


def main() -> int:
    """All rows; 1 if any try is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=200, help="of all kinds together")
    parser.add_argument("--others", type=int, default=16, help="imports, full disks, vanishing")
    parser.add_argument("--rows", nargs="+", default=[], help="by the first word; default all")
    parser.add_argument("--commands", nargs="+", default=[], help="default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background ignores it
    with tempfile.TemporaryDirectory() as parent:
        inputs, place, temporary = (Path(parent) / name for name in ("inputs", "place", "tmp"))
        for folder in (inputs, place, temporary):
            folder.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        make_inputs(inputs)
        asked = commands(inputs)
        jobs = {name: Job(name, words, inputs, place) for name, words in asked.items()
                if name in (options.commands or asked)}  # fmt: skip
        for job in jobs.values():
            job.learn()
            print(f"{job.name}: {job.seconds:.1f} s undisturbed", file=sys.stderr)
        rng, few = Random(options.seed), options.others
        rows = {
            "damaged state": damaged(jobs, rng),
            "full disk": full_disks(jobs, rng, few),
            "imports": stopped_at_imports(jobs, rng, few),
            "power loss": on_the_disk(jobs),
            "read-only folder": read_only(jobs),
            "two at once": two_at_once(jobs),
            "unread output": unread(place),
            "vanished folder": vanished(jobs, rng, few),
            "kill -9, SIGTERM, SIGINT": killed_at_random(jobs, rng, options.kills),
        }
        asked_for = {name: row for name, row in rows.items()
                     if not options.rows or name.split()[0] in options.rows}  # fmt: skip
        found = tried(asked_for)
    print(table(found))
    return any(one.faults for tries in found.values() for one in tries)


def tried(rows: Mapping[str, Iterable[Try]]) -> dict[str, list[Try]]:
    """All tries by their row, or those up to a Ctrl-C; each is told as it is done."""
    found: dict[str, list[Try]] = {name: [] for name in rows}
    with suppress(KeyboardInterrupt):
        for name, tries in rows.items():
            for one in tries:
                found[name].append(one)
                print(f"{name} {len(found[name])}: {one.what} {one.faults}", file=sys.stderr)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
