"""Ports for the servers that tests start."""

import random
import socket

# Below the range from which Linux gives connections their ports, so that no connection of another
# test takes one before its server is up.
_RANGE = (10_000, 32_768)
# Workers that run tests side by side must draw differently, whatever seeds a test sets.
_draw = random.SystemRandom()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    while True:
        port = _draw.randrange(*_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
