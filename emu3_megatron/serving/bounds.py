"""What the server takes from clients at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Limits of calls and connections.

    Attributes:
        body: bytes of a call.
        bodies: bytes of all calls that are being read or answered.
        images: in one call.
        pixels: of an image that is shown, as its header says.
        queue: rows of the KV pool that may be waited for; with more a call is refused.
        videos: jobs that are kept, finished ones included.
        connections: open at the same time.
        head_seconds: until a connection has sent the head of a call.
        body_seconds: until a call has come in whole.
        stuck_seconds: that a client may leave what it was sent unread.
        quiet_seconds: of a stream, before a comment keeps it alive.
        drain_seconds: that running calls have to end after SIGTERM.
    """

    body: int = 32 << 20
    bodies: int = 256 << 20
    images: int = 16
    pixels: int = 40_000_000
    queue: int = 64
    videos: int = 32
    connections: int = 2000
    head_seconds: float = 10
    body_seconds: float = 60
    stuck_seconds: float = 60
    quiet_seconds: float = 10
    drain_seconds: float = 25
