"""Progress bars: one at a time, with the time left of the whole run, told to a callback too."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import tqdm.auto

from erase.support.distributed import launched

ProgressCallback = Callable[[str, int, int], None]
_callback: ContextVar[ProgressCallback | None] = ContextVar("callback", default=None)
_whole: ContextVar["WholeRun | None"] = ContextVar("whole", default=None)


class WholeRun:
    """The parts of a run by what their bars are called, in order, and how much work each is.

    The unit of work is any that is common to all parts. While it is in force, the bars that go by
    the parts also tell the time left for all.
    """

    def __init__(self) -> None:
        self.expect({})

    def __enter__(self) -> Self:
        self._token = _whole.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _whole.reset(self._token)

    def expect(self, parts: Mapping[str, float]) -> None:
        """Begin with these parts now."""
        self._parts, self._started = dict(parts), time.perf_counter()

    def seconds_left(self, part: str, share: float) -> float | None:
        """How long the run will still take once `share` of a part is done, at its pace so far."""
        if part not in self._parts:
            return None
        names = list(self._parts)
        done = sum(self._parts[name] for name in names[: names.index(part)])
        done += share * self._parts[part]
        elapsed = time.perf_counter() - self._started
        return elapsed * (sum(self._parts.values()) - done) / done if done else None


class Bar(tqdm.auto.tqdm):
    """A tqdm bar; the context's callback is told what it is of, how much is done, of how much.

    While another is shown it is not, nor by any process but the first; the callback is told all the
    same.
    """

    def __init__(self, *args: Any, desc: str = "", **options: Any):
        others = (bar for bar in self._instances if bar is not self)
        shown = any(not getattr(bar, "disable", True) for bar in others)
        other = not launched().is_main_process
        options["disable"] = bool(options.get("disable")) or shown or other
        super().__init__(*args, desc=desc, **options)
        self.what = desc

    def __iter__(self) -> Iterator[Any]:
        """As tqdm's, which of a bar that is not shown updates nothing, and of others now and then.

        Raises what the callback raises.
        """
        try:
            for one in self.iterable:
                yield one
                self.update()
        finally:
            self.close()

    def update(self, n: float = 1) -> bool | None:
        """As tqdm's; raises what the callback raises."""
        if self.disable:
            self.n += n  # tqdm does not count what it does not show
        self._tell_whole(n)
        shown = super().update(n)
        if callback := _callback.get():
            callback(self.what, int(self.n), int(self.total or 0))
        return shown

    def _tell_whole(self, n: float) -> None:
        whole = _whole.get()
        if self.disable or whole is None or not self.total:
            return
        left = whole.seconds_left(self.what, (self.n + n) / self.total)
        if left is not None:
            said = f"whole run {self.format_interval(left)} left"
            self.set_postfix_str(said, refresh=False)


@contextmanager
def on_progress(callback: ProgressCallback) -> Iterator[None]:
    """While in force, the bars of this context tell the callback."""
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)
