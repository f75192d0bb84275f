"""Calls as they come in: whole within limits, or refused while they are read."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emu3_megatron.serving.bounds import Bounds
from emu3_megatron.serving.errors import Refused, wrong

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LOCAL = {"localhost", "127.0.0.1", "[::1]", "testserver"}


class ClientGone(Exception):
    """Nobody waits for the response any more."""


@dataclass(frozen=True)
class Call:
    """A call.

    Attributes:
        names: what the path names.
        kind: the body's media type.
    """

    names: dict[str, str]
    kind: str
    body: bytes


class Reader:
    """Reads the bodies of calls."""

    def __init__(self, bounds: Bounds):
        self._bounds = bounds
        self._held = 0  # bytes of all bodies

    @contextmanager
    def hold(self) -> "Iterator[Body]":
        """Count a body for as long as its call takes."""
        body = Body()
        try:
            yield body
        finally:
            self._held -= body.size

    async def read(self, scope: Scope, receive: Receive, body: "Body") -> Call:
        """The call, whole; raises Refused as soon as it is too large or too slow."""
        headers = headers_of(scope)
        kind = headers.get("content-type", "")
        if scope["method"] == "POST" and kind.partition(";")[0].strip() not in (
            # Of other types a page of any site could send what it likes through a browser.
            "application/json",
            "multipart/form-data",
        ):
            raise Refused(415, "send application/json")
        if int(_digits(headers.get("content-length"))) > self._bounds.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                content = await self._content(receive, body)
        except TimeoutError:
            raise Refused(408, "the call came in too slowly", headers=_CLOSE) from None
        return Call(dict(scope.get("path_params", {})), kind, content)

    async def _content(self, receive: Receive, body: "Body") -> bytes:
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            pieces.append(piece)
            body.size += len(piece)
            self._held += len(piece)
            if body.size > self._bounds.body:
                raise self._too_large()
            if self._held > self._bounds.bodies:
                raise Refused(429, "too much is being sent at once", headers={"retry-after": "5"})
            if not message.get("more_body"):
                return b"".join(pieces)

    def _too_large(self) -> Refused:
        return Refused(413, f"a call has {self._bounds.body:,} bytes at most", headers=_CLOSE)


_CLOSE = {"connection": "close"}


@dataclass
class Body:
    """How much of a call is there."""

    size: int = 0


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _digits(text: str | None) -> str:
    if text is None:
        return "0"
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise wrong("content-length is no number")
    return text


class Guard:
    """Lets in who may call.

    Args:
        key: that clients must send as `Authorization: Bearer KEY`; None: all that reach the
            loopback interface may call.
    """

    def __init__(self, key: str | None):
        self._digest = None if key is None else _digest(key)

    def check(self, scope: Scope) -> None:
        """Raises Refused."""
        headers = headers_of(scope)
        if self._digest is None:
            # A name that a foreign site leads here through a browser (DNS rebinding).
            host = headers.get("host", "localhost")
            if _host(host) not in _LOCAL:
                raise Refused(403, "call the server as localhost, or start it with a key")
            # Browsers send forms of any site without asking first.
            if headers.get("origin", f"http://{host}") != f"http://{host}":
                raise Refused(403, "pages of other sites may not call the server")
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(_digest(given), self._digest) or scheme.lower() != "bearer":
            challenge = {"www-authenticate": "Bearer"}
            raise Refused(401, "wrong API key", code="invalid_api_key", headers=challenge)


def _host(header: str) -> str:
    return header if header.endswith("]") else header.rpartition(":")[0] or header


def _digest(key: str) -> bytes:
    """Of equal length, so that comparing tells nothing of the key's."""
    return hashlib.sha256(key.strip().encode()).digest()


async def until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Work until it is done, or cancel it when the client leaves; raises ClientGone then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
