"""What `crash.py` stops and starves: small commands, each in a process forked from a warm one."""

import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import RLock

import numpy as np
from PIL import Image
from stopped_protocol import build, files
from tqdm import tqdm

from erase.bundled import EMOJI, JUDGE
from erase.cli import STOPS, build_parser, leave, on_stop
from erase.cli import main as erase

LONGEST = 120  # seconds of a command
TIMED = (".md", ".json")  # files that may tell how long it took
Before = Callable[[], object]
TRAINED = ["--method=salun", "--salun.training.checkpointing_steps=1"]
FEW = ["--evaluation.forget_pictures=2", "--evaluation.retain_pictures=2", "--evaluation.steps=2"]
CLASSIFIER = ["--classifier.data=folder", "--classifier.side=16", "--classifier.fit.epochs=1",
              "--classifier.model=shufflenet_v2_x0_5", "--classifier.fit.batch_size=8"]  # fmt: skip
FORGET = "--forget=class:0"


def commands(inputs: Path) -> dict[str, list[str]]:
    """By name, what to ask for; `--output` is left to fill in, for `measure` the folder."""
    model, erasure = f"--model={inputs / 'model'}", str(inputs / "erasure")
    classifier = [*CLASSIFIER, f"--classifier.root={inputs / 'classes'}"]
    return {
        "run": ["run", model, "--concept=ghost", *TRAINED, *FEW, "--task.forget_pictures=2",
                "--task.retain_pictures=2", "--task.generation_steps=1", "--task.batch_size=2",
                "--salun.training.max_train_steps=4"],
        "attack": ["attack", erasure, "--attack", "recall", "--prompts=2"],
        "measure": ["measure", *FEW],
        "protocol": ["protocol", model, f"--prompts.path={inputs / 'prompts.csv'}",
                     "--prompts.label=class", "--prompts.guidance_scale=scale",
                     "--drawing.steps=2", f"--evaluation.judge=local-dir:{JUDGE}"],
        "classify": ["classify", *classifier, FORGET, *TRAINED,
                     "--salun.training.max_train_steps=4"],
        "calibrate": ["calibrate", *classifier, FORGET, "--share=0.3", "--method=finetune",
                      "--finetune.training.max_train_steps=1"],
        "evaluate": ["evaluate", str(inputs / "pictures"), "--labels=[ghost, pizza]",
                     f"--judge=local-dir:{JUDGE}"],
        "forget-set": ["forget-set", *classifier, "--count=4"],
        "export": ["export", erasure, "--format=pipeline"],
    }  # fmt: skip


def make_inputs(inputs: Path) -> None:
    """The model, prompts, pictures and an erasure that nothing measured yet."""
    build(inputs)
    shutil.copy(EMOJI / "concepts.json", inputs / "model")
    rows = [f"a {name},{name},{scale}" for scale in (2, 3, 4) for name in ("ghost", "pizza")]
    (inputs / "prompts.csv").write_text("\n".join(["prompt,class,scale", *rows]) + "\n")
    rng = np.random.default_rng(0)
    names = [f"{part}/{kind}/{i}" for part in ("train", "test") for kind in "ab" for i in range(10)]
    paths = [inputs / "classes" / f"{name}.png" for name in names]
    paths += [inputs / "pictures" / f"{i}.png" for i in range(4)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    for words in commands(inputs).values():
        build_parser(words[0], words[1:])  # imports what the command needs
    for name in ("captum.attr", "matplotlib.pyplot", "sklearn.linear_model"):
        import_module(name)
    warm = [*commands(inputs)["protocol"], f"--output={inputs / 'warm'}"]
    require(erase(warm) == 0, "no protocol was drawn")
    gc.freeze()
    bare = ["run", f"--model={inputs / 'model'}", "--concept=ghost", "--method=uce"]
    require(not finished(started([*bare, "--no_evaluation", f"--output={inputs / 'erasure'}"],
                                 inputs / "said")).code, "no erasure was made")  # fmt: skip


def require(holds: bool, what: str) -> None:
    """End the benchmark, saying what went wrong with itself, unless it holds."""
    if not holds:
        raise SystemExit(f"The benchmark itself failed: {what}.")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code, and what it said to both streams."""

    code: int
    said: str

    @property
    def traceback(self) -> bool:
        """Whether it said what only a programmer reads."""
        return any(
            word in self.said for word in ("Traceback", "Exception ignored", "Error in sys.")
        )

    @property
    def told(self) -> bool:
        """Whether it was done, or ended with one sentence."""
        lines = [line for line in self.said.splitlines() if line.startswith("erase: ")]
        return self.code == 0 or (self.code in (2, 130) and len(lines) == 1)


@dataclass(frozen=True)
class Started:
    """A process under way, and the file that it says things to."""

    pid: int
    said: Path


def started(arguments: list[str], said: Path, before: Before = lambda: None) -> Started:
    """Fork, and run `erase` with these arguments as a process of its own would."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        return Started(pid, said)
    code = 1
    try:
        opened = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        tqdm.set_lock(RLock())  # its own is shared, and never free again once a holder is killed
        on_stop(leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        before()
        sys.argv = ["erase", *arguments]
        code = erase()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def finished(process: Started) -> Ended:
    """Wait for the end; a process that does not come to it is killed, which is a code of -9."""
    end = time.monotonic() + LONGEST
    while not (done := os.waitpid(process.pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)
    text = process.said.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(done[1]), text)


@dataclass
class Job:
    """A command in a place of its own, and what its output is when it is whole.

    steady: the files that any two runs write alike. seconds: what the second took.
    """

    name: str
    arguments: list[str]
    inputs: Path
    place: Path
    names: set[str] = field(default_factory=set)
    steady: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def output(self) -> Path:
        """Where the command writes."""
        return self.place / "here" / "out"

    @property
    def words(self) -> list[str]:
        """The whole command."""
        if self.name == "calibrate":
            return self.arguments
        last = [str(self.output)] if self.name == "measure" else [f"--output={self.output}"]
        return [*self.arguments, *last]

    def prepare(self) -> None:
        """An empty place, for `measure` with the erasure."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.output.parent)
        self.output.parent.mkdir(parents=True)
        self.refill()

    def refill(self) -> None:
        """What must be there before the command."""
        if self.name == "measure" and not self.output.exists():
            self.output.parent.mkdir(exist_ok=True)
            shutil.copytree(self.inputs / "erasure", self.output)

    def start(self, before: Before = lambda: None, name: str = "said") -> Started:
        """The command under way."""
        return started(self.words, self.place / name, before)

    def run(self, before: Before = lambda: None) -> Ended:
        """The command to its end."""
        return finished(self.start(before))

    def learn(self) -> None:
        """What the output is when nothing disturbs the command, and how long that takes."""
        found = []
        for _ in "ab":
            self.prepare()
            begun = time.monotonic()
            ended = self.run()
            self.seconds = time.monotonic() - begun
            require(ended.code == 0, f"{self.name}: {ended.said[-600:]}")
            found.append(self.files())
        one, other = found
        self.names = set(one)
        sure = {name: held for name, held in one.items() if other[name] == held}
        self.steady = {name: held for name, held in sure.items() if Path(name).suffix not in TIMED}

    def files(self) -> dict[str, bytes]:
        """What lies in the output, or the one file that it is."""
        return {"": self.output.read_bytes()} if self.output.is_file() else files(self.output)

    def whole(self) -> bool:
        """Whether the output is what the command makes when nothing disturbs it."""
        found = self.files()
        same = all(found.get(name) == held for name, held in self.steady.items())
        if set(found) != self.names or not same:
            return False
        with suppress(ValueError):
            for name, held in found.items():
                if name.endswith(".json"):
                    json.loads(held)
            return True
        return False

    def half(self) -> bool:
        """Whether what lies there is neither absent nor whole, nor as it was."""
        there = self.output.exists() and not self.whole()
        return there and not (
            self.name == "measure" and self.files() == files(self.inputs / "erasure")
        )

    def strays(self) -> list[str]:
        """What lies beside the output, or in the folder for temporary files."""
        beside = [path.name for path in self.output.parent.iterdir() if path != self.output]
        return beside + [path.name for path in Path(os.environ["TMPDIR"]).glob("erase-*")]


@contextmanager
def small_disk(place: Path, kilobytes: int, how: str = "rw") -> Iterator[None]:
    """While in force, `place` is a disk of its own of so many kilobytes; root alone can do it."""
    place.mkdir(parents=True, exist_ok=True)
    code = os.system(f"mount -t tmpfs -o {how},size={kilobytes}k tmpfs '{place}'")
    require(code == 0, "no small disk could be mounted, which root alone can")
    try:
        yield
    finally:
        os.system(f"umount -l '{place}'")
