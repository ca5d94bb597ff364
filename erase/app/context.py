"""What every tab is built around, and how its handlers say what is wrong."""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import gradio as gr

from erase.app.jobs import Cancelled, Progress, Tell, followed
from erase.app.settings import Limits, require_types
from erase.app.studio import Studio
from erase.app.visitors import Visitor, Visitors
from erase.support.errors import OF_FILES, cut, sentence

logger = logging.getLogger(__name__)
# Whatever computes waits in one line, so that two cores or one GPU serve one request at a time.
LINE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
LONGEST = 300  # letters of what is said
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Context:
    """The model, the visitors, and what they may ask."""

    studio: Studio
    visitors: Visitors
    limits: Limits

    def visitor(self, request: gr.Request) -> Visitor:
        """Who asks."""
        return self.visitors.of(request.session_hash)

    def names(self, request: gr.Request) -> list[str]:
        """The erasures the visitor may choose from."""
        return list(self.visitors.choices(self.visitor(request)))

    def cancels(self, button: gr.Button, status: gr.Markdown) -> None:
        """Make a button break off the visitor's job, and say so."""

        def stop(request: gr.Request) -> str:
            visitor = self.visitor(request)
            busy = visitor.busy
            visitor.stop.set()
            return "Cancelling …" if busy else ""

        button.click(stop, None, status, queue=False, **PRIVATE)

    def carried_out(
        self, visitor: Visitor, work: Callable[[Tell], tuple], rest: int
    ) -> Iterator[tuple]:
        """How far a visitor's job is, beside so many parts that stay; then all that it shows."""
        for event in followed(work, visitor.job(), self.limits.seconds):
            done = not isinstance(event, Progress)
            yield event if done else (str(event), *[gr.skip()] * rest)


def plainly(handler: Callable) -> Callable:
    """A handler whose bad input and broken-off work the page tells in one sentence.

    Input of other types than its hints' is bad.
    """
    bound, hints = inspect.signature(handler).bind, get_type_hints(handler)
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streaming(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _told():
                require_types(bound(*args, **kwargs).arguments, hints)
                yield from handler(*args, **kwargs)

        return streaming

    @functools.wraps(handler)
    def once(*args: Any, **kwargs: Any) -> Any:
        with _told():
            require_types(bound(*args, **kwargs).arguments, hints)
            return handler(*args, **kwargs)

    return once


class _told:  # noqa: N801
    """Turns what goes wrong into a message on the page, which names no files of the server."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Cancelled):
            raise gr.Error(
                "Cancelled; nothing was kept.", title="Cancelled", print_exception=False
            ) from None
        if isinstance(error, ValueError):
            said = cut(sentence(error), LONGEST)
            raise gr.Error(said, title="Not done", print_exception=False) from None
        if isinstance(error, OF_FILES):
            logger.error("A file could not be read or written.", exc_info=error)
            said = "A file of the server could not be read or written; try again later."
            raise gr.Error(said, title="Not done", print_exception=False) from None
        if isinstance(error, Exception) and not isinstance(error, gr.Error):
            logger.error("A handler failed.", exc_info=error)
            raise gr.Error("This failed, and was logged.", print_exception=False) from None
