"""Who is here, what they made, and where it lies until they leave."""

import hashlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from erase.app.settings import Limits
from erase.erasure.erasure import Erasure
from erase.evaluate.reports import Report
from erase.support.errors import cut


@dataclass
class Made:
    """An erasure with its name; its folder, in one of its own, and report once it is measured."""

    name: str
    erasure: Erasure
    folder: Path | None = None
    report: Report | None = None

    def measured(self) -> tuple[Path, Report]:
        """Its folder and report; ValueError as long as it is not measured."""
        if self.folder is None or self.report is None:
            raise ValueError(f"{self.name} is being measured; wait until it is.")
        return self.folder, self.report


def _stopped() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Visitor:
    """One visitor: a folder of their own, what they made, and the job that is under way."""

    folder: Path
    made: dict[str, Made] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=_stopped)
    waiting: threading.Event | None = None
    drawing: threading.Event = field(default_factory=_stopped)

    @property
    def busy(self) -> bool:
        """Whether a job is under way or waits for its turn."""
        return not (self.stop.is_set() and self.drawing.is_set())

    def break_off(self) -> None:
        """End at their next step what is drawn and done."""
        self.stop.set()
        self.drawing.set()

    def draws(self) -> threading.Event:
        """What stops the drawing that begins now; whoever draws sets it at the end."""
        self.drawing = threading.Event()
        return self.drawing

    def ask(self) -> None:
        """Wait for a turn; what stops the job may be set before it begins."""
        self.stop = self.waiting = threading.Event()

    def job(self) -> threading.Event:
        """What stops the job that begins now."""
        self.stop, self.waiting = self.waiting or threading.Event(), None
        return self.stop

    def saved(self, name: str, picture: Image.Image) -> str:
        """The path of a picture in the visitor's folder; one of the same name is replaced."""
        # Handed out as pictures, equal ones would share a file that is written while it is read.
        path = self.folder / f"{name}.png"
        picture.save(path)
        return str(path)

    def keep(self, made: Made, limits: Limits) -> None:
        """Keep an erasure; of too many, the oldest go."""
        self.made[made.name] = made
        while len(self.made) > limits.erasures:
            self.forget(next(iter(self.made)))

    def forget(self, name: str) -> None:
        """Drop an erasure and its files."""
        gone = self.made.pop(name, None)
        if gone and gone.folder:
            shutil.rmtree(gone.folder.parent, ignore_errors=True)


class Visitors:
    """Visitors by session; nobody reaches another's folder, whose name is nowhere told."""

    def __init__(self, offered: Mapping[str, Made], limits: Limits):
        self.offered, self._limits = dict(offered), limits
        self.root = Path(tempfile.mkdtemp(prefix="erase-app-"))
        self._secret = secrets.token_hex()
        self._here: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session, whose name is taken for no path."""
        name = self._name(session)
        with self._lock:
            visitor = self._here.pop(name, None) or Visitor(self.root / name)
            visitor.folder.mkdir(exist_ok=True)
            self._here[name] = visitor
            while len(self._here) > self._limits.visitors:
                self._drop(self._to_go(name))
        return visitor

    def host(self) -> Visitor:
        """The app itself, as it draws what everybody sees first; nobody can come as it."""
        folder = self.root / "first"
        folder.mkdir(exist_ok=True)
        return Visitor(folder)

    def leave(self, session: str | None) -> None:
        """Drop a visitor and all their files; their job ends at its next step."""
        name = self._name(session)
        with self._lock:
            if name in self._here:
                self._drop(name)

    def unheard(self, session: str | None) -> None:
        """End a visitor's job, for nobody listens; what they made stays."""
        with self._lock:
            if visitor := self._here.get(self._name(session)):
                visitor.break_off()

    def _name(self, session: str | None) -> str:
        return hashlib.sha256(f"{self._secret}{session}".encode()).hexdigest()[:24]

    def close(self) -> None:
        """Drop everybody."""
        with self._lock:
            while self._here:
                self._drop(next(iter(self._here)))
        shutil.rmtree(self.root, ignore_errors=True)

    def _drop(self, name: str) -> None:
        visitor = self._here.pop(name)
        visitor.break_off()
        shutil.rmtree(visitor.folder, ignore_errors=True)

    def _to_go(self, asking: str) -> str:
        """Who makes room: those without erasures first, then who was away longest; none at work."""
        others = {name: one for name, one in self._here.items() if name != asking}
        idle = [name for name, one in others.items() if not one.busy] or list(others)
        return next((name for name in idle if not others[name].made), idle[0])

    def choices(self, visitor: Visitor) -> dict[str, Made]:
        """What this visitor may choose from: what is offered to all, and their own."""
        return self.offered | visitor.made

    def some(self, visitor: Visitor, *names: str | None) -> list[Made]:
        """The same of those that are named; ValueError if none is."""
        if not any(names):
            raise ValueError("No erasure is chosen; choose one, or make one under Erase.")
        return self.chosen(visitor, [name for name in names if name])

    def chosen(self, visitor: Visitor, names: Sequence[str]) -> list[Made]:
        """The named erasures, each once; ValueError for a name that is not theirs."""
        known = self.choices(visitor)
        for name in names:
            if name not in known:
                raise ValueError(
                    f"There is no erasure {cut(name, 40)!r} of yours; make it under Erase."
                )
        return [known[name] for name in dict.fromkeys(names)]
