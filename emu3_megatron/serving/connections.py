"""Connections: only so many, and none that is held without being used."""

import asyncio
from typing import Any

from emu3_megatron.serving.bounds import Bounds


def guarded_protocol(bounds: Bounds) -> type:
    """uvicorn's HTTP protocol, which closes connections of clients that send or read too slowly."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    silent: dict[Any, None] = {}  # connections without a call, the oldest first

    class Guarded(H11Protocol):  # type: ignore[misc, unused-ignore]
        _timer: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > bounds.connections:
                next(iter(silent)).transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            silent.pop(self, None)
            for timer in (self._timer, self._stuck):
                if timer:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(bounds.stuck_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck:
                self._stuck.cancel()

        def _watch(self) -> None:
            """The time in which a call must begin runs while there is none."""
            has_call = self.cycle is not None and not self.cycle.response_complete
            if has_call:
                silent.pop(self, None)
                if self._timer:
                    self._timer.cancel()
                self._timer = None
            elif self._timer is None:
                silent[self] = None
                self._timer = self.loop.call_later(bounds.head_seconds, self.transport.abort)

    return Guarded
