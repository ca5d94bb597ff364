"""Long work in a thread of its own: how far it is, when it will be done, how to break it off."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from erase.support.progress import on_progress

FINISHED = object()


class Cancelled(Exception):
    """The visitor broke the work off."""


@dataclass(frozen=True)
class Progress:
    """What is being done, how much of it, of how much, and the seconds it will still take."""

    what: str
    done: int
    total: int
    seconds_left: float | None

    def __str__(self) -> str:
        if not self.total:
            return f"{self.what} …"
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        return f"{self.what}: {self.done} of {self.total}{left}"


@dataclass(frozen=True)
class Preview:
    """A picture of how far it is."""

    picture: Any


@contextmanager
def until(stop: threading.Event) -> Iterator[None]:
    """While in force, what tells its progress raises Cancelled once `stop` is set."""

    def listener(what: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Cancelled

    with on_progress(listener):
        yield


Event = Any  # Progress, Preview, or what the work returns
Tell = Callable[[Event], None]


def followed(
    work: Callable[[Tell], Any],
    stop: threading.Event,
    seconds: float,
    between: Callable[[str, int], Any] = lambda what, done: None,
) -> Iterator[Event]:
    """Do the work in a thread and yield what it tells, then what it returns.

    Its progress bars are told as Progress; `between` may then make something to tell of the
    moment. Raises what the work raises, and Cancelled once `stop` is set; the work ends at its
    next step too when nobody listens any more, which nobody waits for. Raises ValueError after so
    many seconds.
    """
    told: queue.Queue = queue.Queue()
    busy, began = threading.Event(), time.perf_counter()
    started: dict[str, tuple[float, int, int]] = {}

    def listener(what: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Cancelled
        if time.perf_counter() - began > seconds:
            raise ValueError(f"This takes longer than {seconds:.0f} s; ask for less.")
        if busy.is_set():
            return
        told.put(Progress(what, done, total, _left(started, what, done, total)))
        busy.set()
        try:
            seen = between(what, done)
        finally:
            busy.clear()
        if seen is not None:
            told.put(seen)

    def worker() -> None:
        try:
            with on_progress(listener):
                told.put((FINISHED, work(told.put), None))
        except BaseException as error:
            told.put((FINISHED, None, error))

    threading.Thread(target=worker, daemon=True).start()
    try:
        while True:
            event = told.get()
            if not (isinstance(event, tuple) and event[0] is FINISHED):
                yield event
                continue
            if event[2] is not None:
                raise event[2]
            yield event[1]
            return
    finally:
        stop.set()


def _left(
    started: dict[str, tuple[float, int, int]], what: str, done: int, total: int
) -> float | None:
    """Seconds left of this bar at its pace so far, once it has one."""
    now = time.perf_counter()
    began, first, last = started.get(what, (now, done, done))
    if done < last:  # another bar of the same name
        began, first = now, done
    started[what] = began, first, done
    if done == first:
        return None
    return (now - began) * (total - done) / (done - first)
