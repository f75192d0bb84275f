"""Runs the server until it is told to stop, and then lets it finish what it has begun."""

import asyncio
import contextlib
import resource
import signal
import socket
import time
from collections.abc import Iterator

from emu3_megatron.errors import InputError, RunEnded
from emu3_megatron.serving.app import build_app
from emu3_megatron.serving.connections import guarded_protocol
from emu3_megatron.serving.service import Service

_FILES_ASIDE = 256  # open files that are no connections of clients
_LOOK = 0.1  # seconds between looks whether calls have ended


def check_installed() -> None:
    """Raises InputError when a package of the extra `serve` is missing."""
    from importlib.util import find_spec

    for name in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed: pip install 'emu3-megatron[serve]'")


def bind(host: str, port: int) -> socket.socket:
    """Take the address, before the minutes that weights may take; raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"--host {host} --port {port}: {error.strerror}; give another") from None
    return bound


def run(service: Service, bound: socket.socket) -> None:
    """Serve at an address until SIGTERM or SIGINT.

    Raises:
        RunEnded: the engine has failed; until then clients were told so for a while.
    """
    import uvicorn

    _allow_files(service.bounds.connections)
    config = uvicorn.Config(
        build_app(service),
        http=guarded_protocol(service.bounds),
        ws="none",
        backlog=1024,
        timeout_keep_alive=int(service.bounds.head_seconds),
        timeout_graceful_shutdown=1,
        server_header=False,
        proxy_headers=False,
        access_log=False,
        log_level="warning",
    )
    server = _draining(service)(config)
    asyncio.run(server.serve(sockets=[bound]))
    if service.engine.has_failed:
        raise RunEnded("the engine has failed, as said above; start the server again", 1)


def _draining(service: Service) -> type:
    import uvicorn

    class Draining(uvicorn.Server):
        """Calls go on for a while after a signal; new ones are refused meanwhile."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._told)
            yield

        async def main_loop(self) -> None:
            watch = asyncio.ensure_future(self._leave_after_failure())
            await super().main_loop()
            watch.cancel()

        async def _leave_after_failure(self) -> None:
            while not service.engine.has_failed:
                await asyncio.sleep(_LOOK)
            await asyncio.sleep(service.bounds.drain_seconds)
            self.should_exit = True

        def _told(self) -> None:
            if service.is_draining:  # a second time: at once
                self.should_exit = True
                return
            service.is_draining = True
            self._waiting = asyncio.ensure_future(self._drain())

        async def _drain(self) -> None:
            end = time.monotonic() + service.bounds.drain_seconds
            while service.is_busy and time.monotonic() < end:
                await asyncio.sleep(_LOOK)
            self.should_exit = True

    return Draining


def _allow_files(connections: int) -> None:
    """Let this process have as many open files as connections need, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _FILES_ASIDE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise InputError(f"{hard:,} open files are allowed; {wanted:,} are needed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
