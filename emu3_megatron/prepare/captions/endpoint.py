"""Asks an OpenAI-compatible server, such as vLLM, for captions."""

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from emu3_megatron.config.prepare import EndpointConfig
from emu3_megatron.errors import InputError

_WRONG_REQUEST = {401, 403, 404, 405}  # no picture would get another answer
_BUSY = {429, 502, 503, 504}  # overrun or starting; or a proxy that finds no server


class NoCaption(Exception):
    """The server is there, and this picture gets no caption."""


class Endpoint:
    """Asks for captions. Threads may share it.

    The `openai` client tries a request again, after a pause that doubles, when nobody answers or
    the server is busy or fails.

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
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=_key(config),
            timeout=config.timeout,
            max_retries=config.attempts - 1,
        )

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
        messages: Any = [{"role": "user", "content": content}]
        try:
            answer = self._client.chat.completions.create(
                model=self.config.model,
                messages=messages,
                max_tokens=self.config.max_tokens,
                temperature=0,
            )
        except self._openai.APIConnectionError as error:
            raise self._no_answer(str(error.__cause__ or error)) from None
        except self._openai.APIStatusError as error:
            status = f"HTTP {error.status_code} {error.response.reason_phrase}"
            if error.status_code in _WRONG_REQUEST:
                raise InputError(f"{self.config.url}: {status}") from None
            if error.status_code in _BUSY:
                raise self._no_answer(status) from None
            raise NoCaption(f"HTTP {error.status_code} from the endpoint") from None
        except ValueError:
            raise NoCaption("the endpoint's answer is not JSON") from None
        return _caption_in(answer)

    def _no_answer(self, reason: str) -> InputError:
        return InputError(
            f"{self.config.url}: no answer ({reason}); start the server and run the same command, "
            "it goes on where it stopped"
        )


def _key(config: EndpointConfig) -> str:
    """The client wants one; a server that needs none takes any."""
    if config.key_variable is None:
        return "none"
    if not (key := os.environ.get(config.key_variable)):
        raise InputError(f"captions.endpoint.key_variable: {config.key_variable} is not set")
    return key


def _text(prompt: str) -> dict[str, Any]:
    return {"type": "text", "text": prompt}


def _caption_in(answer: Any) -> str:
    try:
        caption = answer.choices[0].message.content.strip()
    except (IndexError, TypeError, AttributeError):
        raise NoCaption("the endpoint's answer holds no caption") from None
    if not caption:
        raise NoCaption("the endpoint's caption is empty")
    return str(caption)
