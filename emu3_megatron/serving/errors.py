"""Refusals, as OpenAI's clients expect them. They say what is wrong with a call, and no more."""

from collections.abc import Mapping
from typing import Any

_LONGEST = 300  # characters of a message, which may quote the call


class Refused(Exception):
    """A call that is not served.

    Args:
        message: for the client: of the call alone, nothing of the server's inside.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        message = str(self)[:_LONGEST]
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def wrong(message: str, param: str | None = None, code: str | None = None) -> Refused:
    """A call that must be changed before it can be served."""
    return Refused(400, message, param, code)


def too_long(tokens: int, context: int) -> Refused:
    return wrong(
        f"{tokens:,} tokens, prompt and result; the server's context is {context:,}",
        code="context_length_exceeded",
    )


def full(seconds: int) -> Refused:
    """Too much waits already; ask again after so many seconds."""
    message = "the server has more requests than it can take; try again later"
    return Refused(429, message, code="full", headers={"retry-after": str(seconds)})


def unavailable(message: str) -> Refused:
    """Nothing is served at present."""
    return Refused(503, message, code="unavailable", headers={"retry-after": "10"})


def broken() -> Refused:
    """The engine has failed."""
    return Refused(503, "the engine has failed; the server must be restarted", code="engine_failed")


def internal() -> Refused:
    """Something went wrong inside."""
    return Refused(500, "internal error", code="internal_error")
