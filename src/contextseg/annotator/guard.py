"""Who may speak to the server: only who knows the token, and no page of another site.

The server listens on this machine alone. Other programs on it, and pages of other sites in the same
browser, can reach that too; so each request needs the token, a `Host` that is ours, and, from a
browser, an `Origin` that is ours. No body is larger than its route allows, and none takes for ever.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from contextseg.errors import ContextsegError

_Scope = Mapping[str, Any]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]

_DISCARDED_BYTES = 16 << 20
_DISCARD_SECONDS = 2.0
_BODY_SECONDS = 30

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
"""Headers of every answer."""


class TooLarge(ContextsegError):
    """A body is larger than its route allows."""


class Guard:
    """Refuses requests before anything reads them.

    Args:
        app: The ASGI application behind it.
        token: What each request must know.
        hosts: Names by which this server is called.
        public: Paths that need no token: the page, which holds nothing.
    """

    def __init__(
        self, app: Any, token: str, hosts: Iterable[str], public: Callable[[str], bool]
    ) -> None:
        self.app = app
        self.token = token.encode()
        self.hosts = frozenset(host.lower() for host in hosts)
        self.public = public

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer 403 or 401, or let the request through."""
        if scope["type"] != "http":
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self.refusal(scope["path"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in more if name not in given),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)

    def refusal(self, path: str, headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """Why a request is refused; None where it is not.

        Args:
            path: Its path.
            headers: Its headers, in small letters.

        Returns:
            (status, reason).
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name_of(host) not in self.hosts:
            return 403, "this server is not called so: open the address that it printed"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1").lower()).netloc != host:
            return 403, "pages of other sites may not ask"
        if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            return 403, "pages of other sites may not ask"
        if self.public(path):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self.token):
            return 403, "the token is missing or wrong: open the address that the program printed"
        return None


def same_token(given: str, token: str) -> bool:
    """Whether a token is the right one, in a time that tells nothing of it.

    Args:
        given: What somebody says it is.
        token: The token.
    """
    return hmac.compare_digest(given.encode(), token.encode())


def host_names(host: str) -> set[str]:
    """The names by which a server on an address may be called.

    Args:
        host: The address that it listens on.

    Returns:
        Names as they stand in a header `Host`, without the port.

    Example:
        >>> sorted(host_names("127.0.0.1"))
        ['127.0.0.1', '[::1]', 'localhost']
    """
    names = {"127.0.0.1", "localhost", "[::1]"}
    try:
        if not ip_address(host).is_loopback:
            names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            names.add(f"[{host}]" if ":" in host else host)
    except ValueError:
        names.add(host.lower())
    return names


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Args:
        request: The request.
        limit: Bytes at most.

    Returns:
        The bytes.

    Raises:
        TooLarge: The body is longer.
        ContextsegError: It does not arrive within half a minute.
    """
    declared = request.headers.get("content-length", "0")
    parts = bytearray()

    async def read() -> None:
        async for part in request.stream():
            parts.extend(part)
            if len(parts) > limit:
                return

    async def discard() -> None:
        discarded = 0
        async for part in request.stream():
            discarded += len(part)
            if discarded > _DISCARDED_BYTES:
                return

    try:
        if not (declared.isdecimal() and int(declared) > limit):
            await asyncio.wait_for(read(), _BODY_SECONDS)
            if len(parts) <= limit:
                return bytes(parts)
        with suppress(TimeoutError, RuntimeError):  # a client that still sends reads no answer
            await asyncio.wait_for(discard(), _DISCARD_SECONDS)
    except (TimeoutError, ClientDisconnect):
        what = "its body did not arrive"
        raise ContextsegError("request", what, "send it again") from None
    raise TooLarge("request", f"its body is larger than {limit} bytes", "send one slice")


def _name_of(host: str) -> str:
    """A header `Host` without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _answer(send: _Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
