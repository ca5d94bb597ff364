"""The server's door: what may be posted, how much one visitor may ask at once, and who listens."""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.queueing import Event
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from erase.app.context import LINE
from erase.app.settings import Limits
from erase.app.visitors import Visitors
from erase.support.config import LARGEST
from erase.support.errors import first_line

logger = logging.getLogger(__name__)
JOINING = re.compile(r".*/gradio_api/(?:queue/join|call/(?:v2/)?([^/]+))/?")
AT_ONCE = re.compile(r".*/gradio_api/(?:run|api)/([^/]+)/?")
BESIDE = re.compile(r".*/gradio_api/(?:cancel|reset)/?")
BY_NAME = "/call/v2/"  # takes its arguments by name, and refuses others itself
LISTENING = re.compile(r".*/gradio_api/(?:queue/data|call/(?:v2/)?[^/]+/([^/]+))/?")
UNREADABLE = "The call is no JSON object of texts, finite numbers and lists of them; mend it."
UNKNOWN = "There is no such endpoint; /gradio_api/info lists all."
ENDED = "There is no such job any more; ask again."
UPLOADS = "Nothing can be uploaded here, for no endpoint takes a file."
LONGEST_NAME = 100  # letters of a session's
LONGEST_TEXTS = 100  # of a call, together, in the longest text's letters
LATE_SECONDS, GONE_SECONDS = 10.0, 2.0  # until somebody listens first, and again


class Refused(Exception):
    """A call that goes no further: its HTTP status, and why, in one sentence."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


class Door:
    """Between the server and gradio: lets calls of known endpoints in, and nothing else posted.

    A visitor has so many jobs in line at once; a job that nobody listens to is dropped.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks, visitors: Visitors, limits: Limits):
        self._app, self._page = app, page
        self._visitors, self._limits = visitors, limits
        self._listeners: Counter[str] = Counter()
        self._joining = asyncio.Lock()
        self._watches: dict[str, asyncio.Task] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; one that is refused or fails is answered in one sentence."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["type"] != "http":
                await self._app(scope, receive, send)
            elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self._given(scope, receive, sending)
            else:
                await self._posted(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            if not isinstance(error, Refused):
                logger.warning("A request failed: %s", first_line(error))
                error = Refused(400, "The request cannot be served; mend it.")
            await _answer(error)(scope, receive, send)

    async def _given(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = self._listener(scope)
        if session is None:
            return await self._app(scope, receive, send)
        self._listeners[session] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._listeners[session] -= 1
            self._watch(session, GONE_SECONDS)

    def _listener(self, scope: Scope) -> str | None:
        """The session that a request listens for, if it does; Refused if its job has gone."""
        found = LISTENING.fullmatch(scope["path"])
        if not found:
            return None
        if not found[1]:
            return parse_qs(scope["query_string"].decode()).get("session_hash", [""])[0]
        asked = self._page._queue.pending_event_ids_session
        session = next((session for session, jobs in asked.items() if found[1] in jobs), None)
        if session is None:
            raise Refused(404, ENDED)
        return session

    async def _posted(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.rstrip("/").endswith("/upload"):
            raise Refused(403, UPLOADS)
        joining, at_once = JOINING.fullmatch(path), AT_ONCE.fullmatch(path)
        if not (joining or at_once or BESIDE.fullmatch(path)):
            raise Refused(404, UNKNOWN)
        body = await _body(receive, LONGEST_TEXTS * self._limits.letters)
        asked, again = _read(body), _replayed(body, receive)
        if (call := joining or at_once) and BY_NAME not in path:
            self._require_known(asked, call[1])
        if joining:
            await self._joined(asked.get("session_hash"), scope, again, send)
        else:
            await self._app(scope, again, send)

    async def _joined(
        self, session: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let a call into the line, unless its visitor has enough there; watch who listens."""
        async with self._joining:
            before = list(self._jobs())
            most = self._limits.jobs
            if sum(one.session_hash == session for one in before) >= most:
                raise Refused(429, f"{most} jobs of yours are in line; wait until one is done.")
            await self._app(scope, receive, send)
            joined = [one for one in self._jobs() if one not in before]
        for one in joined:
            self._watch(one.session_hash, LATE_SECONDS)

    def _require_known(self, asked: dict[str, Any], name: str | None) -> None:
        """Raise Refused if there is no such endpoint, or it takes other arguments."""
        session, number = asked.get("session_hash"), asked.get("fn_index")
        states = self._page.state_holder
        known = states[session].blocks_config.fns if session in states else self._page.fns
        if type(number) is int:
            found = known.get(number)
        else:
            found = next((fn for fn in known.values() if name and fn.api_name == name), None)
        if found is None:
            raise Refused(404, UNKNOWN)
        data = asked.get("data")
        if not isinstance(data, list) or len(data) != len(found.inputs):
            raise Refused(400, f"This endpoint takes {len(found.inputs)} arguments; give as many.")
        if not all(map(_flat, data)):
            raise Refused(400, UNREADABLE)

    def _jobs(self) -> Iterator[Event]:
        """The jobs that wait for the model or have it, but for those that were dropped."""
        queue = self._page._queue
        line = queue.event_queue_per_concurrency_id.get(LINE["concurrency_id"])
        yield from line.queue if line else ()
        for one in (one for job in queue.active_jobs for one in job or ()):
            if one.alive and one.concurrency_id == LINE["concurrency_id"]:
                yield one

    def _watch(self, session: str, seconds: float) -> None:
        """Drop the session's jobs if nobody listens to them after a while."""
        if session in self._watches:
            self._watches[session].cancel()
        self._watches[session] = asyncio.create_task(self._drop_unheard(session, seconds))

    async def _drop_unheard(self, session: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        del self._watches[session]
        if self._listeners[session] > 0:
            return
        del self._listeners[session]
        self._visitors.unheard(session)
        await self._page._queue.clean_events(session_hash=session)
        self._page._queue.pending_event_ids_session.pop(session, None)


async def _unfit(request: Any, error: Exception) -> JSONResponse:
    return _answer(Refused(400, UNREADABLE))


UNFIT: dict[Any, Any] = {RequestValidationError: _unfit}  # for fields of other types


def _answer(refused: Refused) -> JSONResponse:
    # Pages read one of these fields, programs the other.
    return JSONResponse({"detail": str(refused), "error": str(refused)}, refused.status)


async def _body(receive: Receive, most: int) -> bytes:
    body: bytes = b""
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"A call has at most {most} bytes; shorten it.")
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The request's messages from the beginning, once its body has been read."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return read.pop() if read else await receive()

    return again


def _read(body: bytes) -> dict[str, Any]:
    """The JSON object of a call; Refused where texts or numbers are none, or it is nested deep."""
    try:
        asked = json.loads(body)
        plain = isinstance(asked, dict) and _plain(asked)
        if plain and len(str(asked.get("session_hash"))) <= LONGEST_NAME:
            return asked
    except (ValueError, RecursionError):
        pass
    raise Refused(400, UNREADABLE)


def _plain(value: Any) -> bool:
    """Whether all numbers within can be computed with; ValueError for texts that have no bytes."""
    if isinstance(value, dict):
        return all(_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(_plain(part) for part in value)
    if isinstance(value, str):
        value.encode()
        return True
    return value is None or abs(value) <= LARGEST  # which NaN is not


def _flat(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, (dict, list)) for part in parts)
