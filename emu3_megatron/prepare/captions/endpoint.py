"""Asks an OpenAI-compatible server, such as vLLM, for captions."""

import asyncio
import base64
import email.utils
import io
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, TypeVar

from PIL import Image

from emu3_megatron.config.prepare import EndpointConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.captions.answers import NoCaption, caption_in

T = TypeVar("T")

_WRONG_REQUEST = {401, 403, 404, 405}  # no picture would get another answer
_BUSY = {502, 503, 504}  # overrun or starting; or a proxy that finds no server
_TOO_MANY = 429
_LONGEST_PAUSE = 30.0  # seconds, where the server does not say how long
_LONGEST_SAID = 200  # characters of what a server explains


@dataclass(frozen=True)
class _Failure:
    """A request that may be tried again.

    Attributes:
        pause: seconds that the server asks for, where it does.
        waits: the server only wants to be asked later: no attempt is used up.
        stops: when it stays like this, it does for all pictures.
    """

    reason: str
    pause: float | None = None
    waits: bool = False
    stops: bool = True


class Endpoint:
    """Asks for captions. Threads may share it.

    A request is tried again, after a pause that doubles or that the server names, when nobody
    answers or the server is busy or fails.

    Raises:
        InputError: `openai` is not installed, or the variable of the key is not set.
    """

    def __init__(self, config: EndpointConfig):
        try:
            import openai
        except ImportError:
            raise InputError(
                "captions.endpoint: the openai package is missing: pip install "
                "'emu3-megatron[prepare]'"
            ) from None
        self.config = config
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=config.url, api_key=_key(config), timeout=config.timeout, max_retries=0
        )
        # Requests run in one loop, where they can be given up after their time.
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        self._lock, self._in_a_row = Lock(), 0

    def captions(self, pictures: Sequence[bytes]) -> list[str]:
        """One caption for each prompt of the recipe, of an image or of a clip's frames.

        Args:
            pictures: as `as_sent` makes them.

        Raises:
            InputError: nobody answers, or not to us, or too many pictures in a row got no caption.
                There is no sense in going on.
            NoCaption: the server is there, and this picture gets no caption.
        """
        shown = [_picture(picture) for picture in pictures]
        try:
            found = [self._ask([*shown, _text(prompt)]) for prompt in self.config.prompts]
        except NoCaption as error:
            self._count_failure(error)
            raise
        with self._lock:
            self._in_a_row = 0
        return found

    def _count_failure(self, error: NoCaption) -> None:
        with self._lock:
            self._in_a_row += 1
            in_a_row = self._in_a_row
        if in_a_row >= self.config.failures:
            raise InputError(
                f"{self.config.url}: {in_a_row} pictures in a row got no caption, the last: "
                f"{error}; set captions.endpoint right, or raise its failures"
            ) from None

    def _ask(self, content: list[dict[str, Any]]) -> str:
        attempts, waited, pause = 0, 0.0, 0.5
        while True:
            answer = self._try(content)
            if not isinstance(answer, _Failure):
                return caption_in(answer)
            attempts += not answer.waits
            wait = pause if answer.pause is None else answer.pause
            waited += wait
            if attempts >= self.config.attempts or waited > self.config.patience:
                raise self._no_answer(answer.reason) if answer.stops else NoCaption(answer.reason)
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, content: list[dict[str, Any]]) -> Any | _Failure:
        """The answer, or a failure after which the request can be tried again."""
        messages: Any = [{"role": "user", "content": content}]
        try:
            return self._in_time(
                self._client.chat.completions.create(
                    model=self.config.model,
                    messages=messages,
                    max_tokens=self.config.max_tokens,
                    temperature=0,
                )
            )
        except (TimeoutError, self._openai.APITimeoutError):
            return _Failure(f"timed out after {self.config.timeout:g} s")
        except self._openai.APIConnectionError as error:
            return _Failure(_cause(error))
        except self._openai.APIStatusError as error:
            return self._refused(error)
        except ValueError:
            raise NoCaption("the endpoint's answer is not JSON") from None

    def _in_time(self, request: Coroutine[Any, Any, T]) -> T:
        """What a request gives. Raises TimeoutError after the time for all of it."""
        limited = asyncio.wait_for(request, self.config.timeout)
        return asyncio.run_coroutine_threadsafe(limited, self._loop).result()

    def _refused(self, error: Any) -> _Failure:
        """Raises InputError or NoCaption where another try would get the same answer."""
        code, headers = error.status_code, error.response.headers
        reason = f"HTTP {code} {error.response.reason_phrase}{_explanation(error)}"
        if code in _WRONG_REQUEST:
            raise InputError(f"{self.config.url}: {reason}")
        if code == _TOO_MANY:
            return _Failure(reason, _retry_after(headers), waits=True)
        if code >= 500 or code == 408:
            return _Failure(reason, _retry_after(headers), stops=code in _BUSY)
        raise NoCaption(f"{reason}, from the endpoint")

    def _no_answer(self, reason: str) -> InputError:
        return InputError(
            f"{self.config.url}: no answer ({reason}); start the server and run the same command, "
            "it goes on where it stopped"
        )


def _cause(error: BaseException) -> str:
    """What happened first; what libraries say on top of it tells less."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _explanation(error: Any) -> str:
    """What the server says itself, in one short line."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("error", body)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body or ""
    said = " ".join(str(body or error.response.text).split())
    return f": {said[:_LONGEST_SAID]}" if said and said != "{}" else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait; None where the server does not say it."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / scale)
        except (KeyError, ValueError):
            continue
    try:
        until = email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp()
    except (KeyError, ValueError):
        return None
    return max(0.0, until - time.time())


def _key(config: EndpointConfig) -> str:
    """The client wants one; a server that needs none takes any."""
    if config.key_variable is None:
        return "none"
    if not (key := os.environ.get(config.key_variable)):
        raise InputError(f"captions.endpoint.key_variable: {config.key_variable} is not set")
    return key


def as_sent(image: Image.Image, side: int) -> bytes:
    """The JPEG that the server gets of an image, the longer side reduced to `side`."""
    small = image.copy()
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=90)
    return data.getvalue()


def _picture(jpeg: bytes) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _text(prompt: str) -> dict[str, Any]:
    return {"type": "text", "text": prompt}
