"""How a command ends: told to stop, with nobody left to read it, or with no room for its words."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

STOPPED = "Stopped; the same command goes on from what was kept, if anything was."
STOPS = (signal.SIGINT, signal.SIGTERM)


def on_stop(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    """What SIGINT and SIGTERM do from now on, each unless it is ignored, as in the background."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once with 130, while it has begun nothing; libraries may be half-read."""
    with suppress(OSError):
        os.write(2, f"erase: {STOPPED}\n".encode())  # a print may be under way
    os._exit(130)


def tell(text: str) -> int:
    """Print what was done: 0, also where nobody reads it; 2 where there is no room for it."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        return 0
    except OSError as error:
        complain(f"It is done, but what it says cannot be written ({error.strerror}); make room.")
        return 2
    return 0


def complain(message: str) -> None:
    """Print a sentence of ours to stderr, if anybody reads it."""
    with suppress(OSError):
        print(f"erase: {message}", file=sys.stderr, flush=True)


def drop_unread() -> None:
    """Leave nothing in the streams that the interpreter would stumble over as it ends."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
