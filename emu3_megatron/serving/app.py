"""Puts the endpoints together as an ASGI application."""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from emu3_megatron.serving.calls import Call, ClientGone, Receive, Scope, until_gone
from emu3_megatron.serving.endpoints import chat, completions, images, page, status, tokens, videos
from emu3_megatron.serving.errors import Refused, internal
from emu3_megatron.serving.outlet import Outlet, Send
from emu3_megatron.serving.service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette

Handler = Callable[[Service, Call, Outlet], Awaitable[None]]

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/v1/models", status.models),
    ("GET", "/v1/models/{model:path}", status.model),
    ("POST", "/v1/chat/completions", chat.complete),
    ("POST", "/v1/images/generations", images.generate),
    ("POST", "/v1/videos", videos.create),
    ("GET", "/v1/videos", videos.listing),
    ("GET", "/v1/videos/{video}", videos.find),
    ("GET", "/v1/videos/{video}/content", videos.content),
    ("DELETE", "/v1/videos/{video}", videos.delete),
    ("POST", "/v1/completions", completions.complete),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/tokenizer_info", tokens.info),
    ("GET", "/metrics", status.metrics),
]
OPEN: list[tuple[str, str, Handler]] = [
    ("GET", "/health", status.health),
    ("GET", "/", page.show),
    ("GET", "/static/{name}", page.static),
]
"""What may be called without a key."""


def build_app(service: Service) -> "Starlette":
    """The application; the engine runs while it does."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        service.engine.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await service.close()
            await asyncio.to_thread(service.engine.stop)

    routes = [
        Route(path, _Endpoint(service, handler, guarded), methods=[method])
        for listed, guarded in ((ROUTES, True), (OPEN, False))
        for method, path, handler in listed
    ]
    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_such_path}
    )


class _Endpoint:
    """A handler as an ASGI application."""

    def __init__(self, service: Service, handler: Handler, guarded: bool):
        self._service = service
        self._handler = handler
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        outlet = Outlet(send, service.bounds.quiet_seconds)
        try:
            await self._answer(scope, receive, outlet)
        except ClientGone:
            return
        except Refused as refused:
            await outlet.refuse(refused)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            await outlet.refuse(internal())
        finally:
            await outlet.close()
            service.metrics.answer(outlet.status or "gone")

    async def _answer(self, scope: Scope, receive: Receive, outlet: Outlet) -> None:
        service = self._service
        if self._guarded:
            service.guard.check(scope)
        with service.reader.hold() as body:
            call = await service.reader.read(scope, receive, body)
            await until_gone(receive, self._handler(service, call, outlet))


async def _no_such_path(request: Any, error: Any) -> Any:
    from starlette.responses import JSONResponse

    refused = Refused(error.status_code, "there is no such path or method")
    return JSONResponse(refused.body, refused.status)
