"""The response to a call: JSON, a file, or a stream of events that is kept alive."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from emu3_megatron.serving.errors import Refused

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SAFE = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class Outlet:
    """Sends one response.

    Args:
        quiet_seconds: after which a stream gets a comment, so that nobody between takes it for
            dead.

    Attributes:
        status: None before anything was sent.
    """

    def __init__(self, send: Send, quiet_seconds: float):
        self.status: int | None = None
        self._send = send
        self._quiet = quiet_seconds
        self._last = 0.0
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    async def json(
        self, payload: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        content = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
        await self.content(content, "application/json", status, headers)

    async def content(
        self,
        content: bytes,
        kind: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A whole response of a media type."""
        length = {"content-length": str(len(content))}
        await self._start(status, {"content-type": kind, **length, **(headers or {})})
        await self._send({"type": "http.response.body", "body": content})

    async def open_stream(self) -> None:
        """Begin a stream of events, before there is one."""
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8"})
        self._keeper = asyncio.create_task(self._keep_alive())

    async def event(self, payload: Any, name: str | None = None) -> None:
        """An event of the stream."""
        head = f"event: {name}\n" if name else ""
        data = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
        await self._write(f"{head}data: {data}\n\n")

    async def refuse(self, refused: Refused) -> None:
        """An error: as the response, or as the last event of a stream that has begun."""
        if self.status is None:
            await self.json(refused.body, refused.status, refused.headers)
        elif self._keeper:
            await self.event(refused.body, "error")

    async def close(self) -> None:
        """End a stream."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        assert self.status is None, "a response was sent"
        self.status = status
        pairs = [(n.encode(), v.encode("latin-1")) for n, v in {**_SAFE, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, text: str) -> None:
        async with self._lock:
            self._last = time.monotonic()
            body = text.encode("utf-8", "replace")
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _keep_alive(self) -> None:
        self._last = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, self._last + self._quiet - time.monotonic()))
            if time.monotonic() - self._last >= self._quiet:
                await self._write(": keep-alive\n\n")
