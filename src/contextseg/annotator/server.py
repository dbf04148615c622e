"""The routes of the page: each asks the session for one thing.

| Route | Answer |
|---|---|
| `GET /`, `GET /static/NAME` | the page |
| `GET /api/cases` | worklist, classes, jobs |
| `POST /api/cases/N/open` | the facts of a case |
| `GET /api/cases/N/slice/PLANE/K` | grey values, uint16 |
| `GET /api/cases/N/label/PLANE/K` | drawn and filled, 2 x uint8; `ETag` is the revision |
| `PUT /api/cases/N/label/PLANE/K` | saves drawn with `If-Match`; 409 where it is stale |
| `POST /api/cases/N/fill`, `refine`, `finish`, `reopen` | strip; job; next case |
| `GET /api/cases/N/segmentation` | CASE.seg.nrrd |
| `POST /api/classes`, `POST /api/train`, `DELETE /api/jobs/J` | |
| `GET /api/events` | server-sent events: drawn, filled, job, worklist |
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from contextseg.annotator.drawing import StaleSlice
from contextseg.annotator.guard import Guard, TooLarge, read_body
from contextseg.annotator.planes import slice_shape
from contextseg.annotator.session import AnnotationSession
from contextseg.errors import ContextsegError
from contextseg.memory_errors import out_of_memory

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_TOOLS = ("brush", "eraser", "lasso", "polygon", "flood", "copy", "empty", "accept", "undo", "redo")
_JSON_BYTES = 4096
_TABS = 32
_WAITING = 500

Handler = Callable[[Request], Awaitable[Response]]


class Events:
    """Events for the tabs that listen; a tab that does not read them is told to start anew."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._tabs: set[asyncio.Queue[dict[str, Any]]] = set()

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to all tabs, from any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._send, event)

    def end(self) -> None:
        """End all streams, from the thread of the server."""
        self._send({"type": "end"})

    def _send(self, event: dict[str, Any]) -> None:
        for tab in list(self._tabs):
            if tab.qsize() >= _WAITING:
                while not tab.empty():
                    tab.get_nowait()
                tab.put_nowait({"type": "reset"})
            tab.put_nowait(event)

    def stream(self) -> StreamingResponse:
        """A stream of events for one more tab.

        Raises:
            ContextsegError: Too many tabs listen.
        """
        if len(self._tabs) >= _TABS:
            raise ContextsegError("events", f"{_TABS} tabs are open", "close some")
        tab: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tabs.add(tab)

        async def lines() -> Any:
            try:
                yield b": open\n\n"
                while True:
                    try:
                        event = await asyncio.wait_for(tab.get(), 15)
                    except TimeoutError:
                        yield b": still here\n\n"
                        continue
                    if event["type"] == "end":
                        return
                    yield f"data: {json.dumps(event)}\n\n".encode()
            finally:
                self._tabs.discard(tab)

        return StreamingResponse(lines(), media_type="text/event-stream")


class _Routes:
    """One method a route."""

    def __init__(self, session: AnnotationSession, events: Events) -> None:
        self.session = session
        self.events = events

    def routes(self) -> list[Route]:
        case = "/api/cases/{n:int}"
        place = "{plane:str}/{k:int}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/", self.page),
            ("GET", "/static/{name:str}", self.static),
            ("GET", "/api/cases", self.cases),
            ("POST", f"{case}/open", self.open),
            ("GET", f"{case}/slice/{place}", self.grey),
            ("GET", f"{case}/label/{place}", self.label),
            ("PUT", f"{case}/label/{place}", self.put),
            ("POST", f"{case}/fill", self.fill),
            ("POST", f"{case}/refine", self.refine),
            ("POST", f"{case}/finish", self.finish),
            ("POST", f"{case}/reopen", self.reopen),
            ("GET", f"{case}/segmentation", self.segmentation),
            ("POST", "/api/classes", self.classes),
            ("POST", "/api/train", self.train),
            ("DELETE", "/api/jobs/{number:int}", self.cancel),
            ("GET", "/api/events", self.listen),
        ]
        return [Route(path, handled(handler), methods=[method]) for method, path, handler in table]

    async def page(self, request: Request) -> Response:
        return _file("page.html")

    async def static(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    async def cases(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self.session.cases))

    async def open(self, request: Request) -> Response:
        n = request.path_params["n"]
        facts = await run_in_threadpool(self.session.describe, n)
        asyncio.get_running_loop().run_in_executor(None, self.session.prefetch, n)
        return _json(facts)

    async def grey(self, request: Request) -> Response:
        n, plane, k = _place(request)
        channel = _whole(request.query_params.get("c", "0"), "channel")
        pixels = await run_in_threadpool(self.session.grey, n, plane, k, channel)
        return _bytes(pixels, {"Cache-Control": "private, max-age=31536000, immutable"})

    async def label(self, request: Request) -> Response:
        n, plane, k = _place(request)
        pixels, revision = await run_in_threadpool(self.session.label, n, plane, k)
        return _bytes(pixels, {"ETag": f'"{revision}"', "Cache-Control": "no-store"})

    async def put(self, request: Request) -> Response:
        n, plane, k = _place(request)
        match = request.headers.get("if-match", "").strip('"')
        if not match:
            remedy = "send the ETag that the slice came with"
            raise ContextsegError("If-Match", "the header is missing", remedy)
        revision = _whole(match, "If-Match")
        query = request.query_params
        drawing = await run_in_threadpool(self.session.drawing, n)
        drawing.check_slice(plane, k)
        rows, columns = slice_shape(drawing.shape, plane)
        body = await read_body(request, rows * columns)
        tool = query.get("tool", "")
        put = partial(
            self.session.put,
            tool=tool if tool in _TOOLS else "other",
            seconds=_seconds(query.get("seconds", "0")),
            origin="accepted fill" if tool == "accept" else "hand",
            who=query.get("who", "")[:32],
            fill=query.get("fill", "1") != "0",
        )
        new = await run_in_threadpool(put, n, plane, k, body, revision)
        return _json({"revision": new}, {"ETag": f'"{new}"'})

    async def fill(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self.session.fill, request.path_params["n"]))

    async def refine(self, request: Request) -> Response:
        job = await run_in_threadpool(self.session.refine, request.path_params["n"])
        return _json(job.facts())

    async def finish(self, request: Request) -> Response:
        accept = request.query_params.get("accept") == "1"
        finish = partial(self.session.finish, request.path_params["n"], accept)
        return _json(await run_in_threadpool(finish))

    async def reopen(self, request: Request) -> Response:
        await run_in_threadpool(self.session.project.reopen, request.path_params["n"])
        self.events.publish({"type": "worklist"})
        return _json({})

    async def segmentation(self, request: Request) -> Response:
        n = request.path_params["n"]

        def content() -> tuple[bytes, str]:
            with tempfile.TemporaryDirectory() as folder:
                drawing = self.session.drawing(n)
                path = self.session.project.download(n, drawing, Path(folder))
                return path.read_bytes(), path.name

        pixels, name = await run_in_threadpool(content)
        ascii_name = name.encode("ascii", "replace").decode().replace('"', "_").replace("?", "_")
        disposition = f'attachment; filename="{ascii_name}"'
        return _bytes(pixels, {"Content-Disposition": disposition, "Cache-Control": "no-store"})

    async def classes(self, request: Request) -> Response:
        body = await read_body(request, _JSON_BYTES)
        try:
            name = json.loads(body)["name"]
        except (ValueError, KeyError, TypeError, RecursionError):
            name = None
        if not isinstance(name, str):
            raise ContextsegError("request", "no name of a class", 'send {"name": "liver"}')
        await run_in_threadpool(self.session.add_class, name)
        return _json(await run_in_threadpool(self.session.cases))

    async def train(self, request: Request) -> Response:
        return _json((await run_in_threadpool(self.session.train)).facts())

    async def cancel(self, request: Request) -> Response:
        return _json(self.session.jobs.cancel(request.path_params["number"]).facts())

    async def listen(self, request: Request) -> Response:
        return self.events.stream()


def application(
    session: AnnotationSession,
    events: Events,
    token: str,
    hosts: set[str],
    more: list[Route] | None = None,
    public: Callable[[str], bool] = lambda path: False,
) -> Guard:
    """The whole ASGI application.

    Args:
        session: What it asks.
        events: What it tells.
        token: What every request but those for the page must know.
        hosts: Names by which the server is called.
        more: More routes, such as those of MONAI Label.
        public: More paths that need no token.

    Returns:
        The application, behind its guard.
    """

    async def begin(scope: Any, receive: Any, send: Any) -> None:
        events.loop = asyncio.get_running_loop()
        await app(scope, receive, send)

    app = Starlette(routes=[*_Routes(session, events).routes(), *(more or [])])
    app.router.redirect_slashes = False
    return Guard(begin, token, hosts, lambda p: p == "/" or p.startswith("/static/") or public(p))


def handled(handler: Handler) -> Handler:
    """A handler whose errors are answers.

    Args:
        handler: Takes a request, and may raise a `ContextsegError`.

    Returns:
        The same with 404, 409, 413, 507 or 400 and a reason in place of an error.
    """

    async def answer(request: Request) -> Response:
        try:
            with out_of_memory(request.url.path, _MEMORY_REMEDY):
                return await handler(request)
        except StaleSlice as error:
            return _json({"error": str(error), "revision": error.revision}, status=409)
        except TooLarge as error:
            return _json({"error": str(error)}, {"Connection": "close"}, 413)
        except ContextsegError as error:
            return _json({"error": str(error)}, status=_status(error))

    return answer


_MEMORY_REMEDY = "close other programs, and try again: what was drawn is saved"


def _status(error: ContextsegError) -> int:
    absent = ("there is no such", "the number of cases is", "the plane has", "the scan has")
    if error.what.startswith(absent):
        return 404
    full = (
        "out of memory",
        "the disk",
        "no permission to write",
        "a file stands",
        "a folder stands",
    )
    return 507 if error.what.startswith(full) else 400


def _place(request: Request) -> tuple[int, str, int]:
    part = request.path_params
    return part["n"], part["plane"], part["k"]


def _whole(text: str, what: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise ContextsegError(what, f"{text[:20]!r} is no number", "give a whole number from 0")
    return int(text)


def _seconds(text: str) -> float:
    """Seconds that a tab says were spent; 0 where they cannot be."""
    try:
        seconds = float(text[:20])
    except ValueError:
        return 0.0
    return round(seconds, 1) if math.isfinite(seconds) and 0 <= seconds < 3600 else 0.0


def _file(name: str) -> Response:
    """A file of the page; there are no folders below."""
    known = {path.name: path for path in files("contextseg.annotator").joinpath("static").iterdir()}
    path = known.get(name)
    kind = _TYPES.get(Path(name).suffix)
    if path is None or kind is None:
        return _json({"error": "there is no such file"}, status=404)
    headers = {"Cache-Control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=f"{kind}; charset=utf-8")


def _json(content: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse(content, status_code=status, headers=all_headers)


def _bytes(content: bytes, headers: dict[str, str]) -> Response:
    return Response(content, headers=headers, media_type="application/octet-stream")
