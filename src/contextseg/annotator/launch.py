"""Start the annotator: a server on this machine, and the page in the browser."""

from __future__ import annotations

import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from contextseg.annotator.guard import host_names
from contextseg.annotator.project import open_project
from contextseg.annotator.server import Events, application
from contextseg.annotator.session import AnnotationSession
from contextseg.disk import sweep_leftovers, writing
from contextseg.errors import ContextsegError
from contextseg.pipeline import open_propagation_model
from contextseg.propagation import open_completion
from contextseg.stopping import Stopped

_SHORTEST_TOKEN = 16


class Annotating:
    """A server that runs, and the session behind it.

    Use it as a context, or call `stop`.

    Args:
        session: The session.
        events: What it tells.
        app: The ASGI application.
        bound: The socket that it listens on.
        lock: That of the folder, freed at the end.
        token: What each request must know.
        host: The name for the address of the page.

    Attributes:
        url: The page's address, with the token.
    """

    def __init__(
        self,
        session: AnnotationSession,
        events: Events,
        app: Any,
        bound: socket.socket,
        lock: FileLock,
        token: str,
        host: str,
    ) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                events.end()
                await super().shutdown(sockets)

        self.session = session
        self.token = token
        self.port = int(bound.getsockname()[1])
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        self.url = f"{self.address}#{token}"
        self._socket = bound
        self._lock = lock
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=256,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
        self._server = Server(config)
        self._thread: threading.Thread | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._ended = threading.Event()
        self._ended.set()

    def start(self) -> Annotating:
        """Serve in a thread, so that a notebook goes on."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._serve, name="annotate", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def serve(self) -> None:
        """Serve until Ctrl-C, or until another thread calls `stop`."""
        self._ended.clear()
        try:
            self._serve()
        except (KeyboardInterrupt, Stopped):
            pass
        finally:
            self._close()

    def stop(self) -> None:
        """End the server, from any thread; everything drawn is saved already."""
        self._server.should_exit = True
        self._ended.wait(timeout=15)  # its socket is closed after that
        self._close()

    def _close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._socket.close()
            self.session.close()
            self._lock.release()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()

    def __enter__(self) -> Annotating:
        return self if self._thread else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Annotating({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">Open the annotator</a>'


def start_annotating(
    source: Path,
    work: Path,
    *,
    model: str | Path | None = None,
    classes: Sequence[str] = (),
    labels: str | Path | None = None,
    train: Sequence[str] = (),
    port: int = 0,
    host: str = "127.0.0.1",
    token: str = "",
    monai: bool = False,
) -> Annotating:
    """A server for a folder of scans, which does not run yet.

    Args:
        source: A scan, a folder of scans or a data set.
        work: Folder of everything that is drawn and made.
        model: A run of method "stcn", which refines; None is the network of the package.
        classes: What to draw, see `open_project`.
        labels: Folder of label maps to start from.
        train: More arguments of `contextseg train`, for the training that the page starts.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on.
        token: The token; "" makes one. Another address than this machine's own needs one.
        monai: Answer MONAI Label's clients too.

    Returns:
        The server.

    Raises:
        ContextsegError: The folders or the model cannot be used, the port is taken, or the address
            needs a token of your own, or another annotator works in the folder.
    """
    token = _token(token, host)
    # The model first: one that cannot be used leaves no folder behind.
    network = open_propagation_model(model) if model else open_completion()
    project = open_project(source, work, classes, None if labels is None else Path(labels))
    lock = _lock(work)
    try:
        bound = _bind(host, port)
    except ContextsegError:
        lock.release()
        raise
    events = Events()
    session = AnnotationSession(project, network, list(train), events.publish)
    more, public = [], None
    if monai:
        from contextseg.annotator.monailabel import MonaiLabel

        label_server = MonaiLabel(session, token)
        more, public = label_server.routes(), label_server.public
    app = application(
        session, events, token, host_names(host), more, public or (lambda path: False)
    )
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return Annotating(session, events, app, bound, lock, token, shown)


def open_browser(url: str) -> bool:
    """Open a page in the person's browser; whether there is one."""
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


def _token(token: str, host: str) -> str:
    try:
        own = ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    if not own and not token:
        remedy = "give --token, 16 characters or more, and read docs/guide/annotate.md"
        raise ContextsegError(f"--host {host}", "others can reach this address", remedy)
    if not token:
        return secrets.token_urlsafe(32)
    sound = token.isascii() and token.isprintable() and not set(token) & set(' #"%<>')
    if len(token) < _SHORTEST_TOKEN or not sound:
        what = "not a token"
        remedy = f"give {_SHORTEST_TOKEN} letters and digits or more"
        raise ContextsegError("--token", what, remedy)
    return token


def _lock(work: Path) -> FileLock:
    """The folder for this process alone, without what a killed one left; the lock dies with it."""
    lock = FileLock(work / ".annotate.lock", thread_local=False)
    try:
        with writing(work):
            lock.acquire(timeout=0)
    except Timeout:
        what = "another annotator works in this folder"
        raise ContextsegError(work, what, "use its page, or stop it first") from None
    sweep_leftovers(work)
    return lock


def _bind(host: str, port: int) -> socket.socket:
    where = f"--port {port}"
    if not 0 <= port < 2**16:
        raise ContextsegError(where, "not a port", "give 1024 to 65535, or 0 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol told, asyncio answers at once and does not wait for full packets.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        what = f"the address cannot be used ({error.strerror or error})"
        remedy = "another program may use the port: choose another, or 0 for a free one"
        raise ContextsegError(f"--host {host} {where}", what, remedy) from error
    return bound
