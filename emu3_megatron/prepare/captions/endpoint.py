"""Captions from an OpenAI-compatible server, as vLLM is."""

import base64
import io
import json
import os
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image

from emu3_megatron.config.prepare import EndpointConfig
from emu3_megatron.errors import InputError

_PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
_OUR_FAULT = {401, 403, 404, 405}
_NOBODY_THERE = {502, 503, 504}  # a proxy says so, or a server that is starting or overrun


class NoCaption(Exception):
    """The server is there, and this picture gets no caption."""


class Endpoint:
    """Asks for captions. Threads may share it."""

    def __init__(self, config: EndpointConfig):
        self.config = config
        self._url = config.url.rstrip("/") + "/chat/completions"

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each prompt of the recipe, of an image or of a clip's frames.

        Raises:
            InputError: nobody answers, or not to us. There is no sense in going on.
            NoCaption: the server is there, and this picture gets no caption.
        """
        pictures = [self._picture(image) for image in images]
        return [self._ask([*pictures, _text(prompt)]) for prompt in self.config.prompts]

    def _picture(self, image: Image.Image) -> dict[str, Any]:
        small = image.copy()
        small.thumbnail((self.config.side, self.config.side))
        data = io.BytesIO()
        small.save(data, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    def _ask(self, content: list[dict[str, Any]]) -> str:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
        }
        request = Request(self._url, json.dumps(body).encode(), self._headers())
        for attempt in range(self.config.attempts):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                return self._answer(request)
            except (NoCaption, _Unreachable) as error:
                last = error
        if isinstance(last, _Unreachable):
            raise InputError(
                f"{self._url}: no answer ({last}); start the server and run the same command, it "
                "goes on where it stopped"
            )
        raise last

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if variable := self.config.key_variable:
            headers["Authorization"] = f"Bearer {os.environ.get(variable, '')}"
        return headers

    def _answer(self, request: Request) -> str:
        try:
            with urlopen(request, timeout=self.config.timeout) as response:
                answer = json.load(response)
        except HTTPError as error:
            if error.code in _OUR_FAULT:
                raise InputError(f"{self._url}: HTTP {error.code} {error.reason}") from None
            if error.code in _NOBODY_THERE:
                raise _Unreachable(f"HTTP {error.code} {error.reason}") from None
            raise NoCaption(f"HTTP {error.code} from the endpoint") from None
        except ValueError:
            raise NoCaption("the endpoint's answer is not JSON") from None
        except (URLError, OSError, HTTPException) as error:
            raise _Unreachable(str(getattr(error, "reason", error))) from None
        return _caption_in(answer)


class _Unreachable(Exception):
    pass


def _text(prompt: str) -> dict[str, Any]:
    return {"type": "text", "text": prompt}


def _caption_in(answer: Any) -> str:
    try:
        caption = answer["choices"][0]["message"]["content"].strip()
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoCaption("the endpoint's answer holds no caption") from None
    if not caption:
        raise NoCaption("the endpoint's caption is empty")
    return caption
