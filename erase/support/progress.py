"""Progress bars that also tell a listener, who may break the work off by raising."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tqdm.auto

ProgressCallback = Callable[[str, int, int], None]
_listener: ContextVar[ProgressCallback | None] = ContextVar("listener", default=None)


class Bar(tqdm.auto.tqdm):
    """A tqdm bar; the thread's listener hears what it is of, how much is done, and of how much."""

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm's; raises what the listener raises."""
        shown = super().update(n)
        listener = _listener.get()
        if listener is not None:
            # A bar that is switched off knows not even what it is of.
            what = getattr(self, "desc", "").removesuffix(": ")
            listener(what, int(self.n), int(self.total or 0))
        return shown


@contextmanager
def on_progress(listener: ProgressCallback) -> Iterator[None]:
    """While in force, the bars of this thread tell the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
