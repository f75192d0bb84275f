"""Messages of a chat as turns of a dialogue, with the codes of the images that they show."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from emu3_megatron.grammar import Turn, Vision
from emu3_megatron.serving.errors import Refused, wrong
from emu3_megatron.serving.fields import Body
from emu3_megatron.serving.pictures import data_of, encode_picture
from emu3_megatron.serving.service import Service
from emu3_megatron.vocabulary import SYSTEM_TEXT


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Parts = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], BeforeValidator(_as_parts)
]


class Message(Body):
    """A message.

    Attributes:
        refusal, tool_calls: clients send back what they were answered; they are of no use.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    name: str | None = None
    refusal: None = None
    tool_calls: None = None


def turns_of(service: Service, messages: Sequence[Message]) -> tuple[list[Turn], str]:
    """Turns, the last of which waits for its answer, and the system text; raises Refused.

    Encodes images: work for a worker.
    """
    images = [p for m in messages for p in m.content if isinstance(p, ImagePart)]
    if len(images) > service.bounds.images:
        raise wrong(f"messages: {service.bounds.images} images at most", "messages")
    system, first = SYSTEM_TEXT, 0
    if messages and messages[0].role in ("system", "developer"):
        system, first = _text(service, messages[0], "messages.0"), 1
    _check_order(messages[first:], first)
    turns = []
    for i in range(first, len(messages), 2):
        question = _question(service, messages[i], f"messages.{i}")
        answer = None
        if i + 1 < len(messages):
            answer = _text(service, messages[i + 1], f"messages.{i + 1}")
        turns.append(Turn(question, answer))
    return turns, system


def _check_order(messages: Sequence[Message], first: int) -> None:
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if message.role != role:
            raise _order(first + i, role)
    if len(messages) % 2 == 0:
        raise _order(first + len(messages), "user")


def _order(number: int, role: str) -> Refused:
    return wrong(f"messages.{number}: a message of the {role} belongs here", "messages")


def _text(service: Service, message: Message, param: str) -> str:
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) < len(message.content):
        raise wrong(f"{param}: images stand in messages of the user", param)
    text = "".join(texts)
    service.model.check_text(text, param)
    return text


def _question(service: Service, message: Message, param: str) -> list[str | Vision]:
    parts: list[str | Vision] = []
    for number, part in enumerate(message.content):
        name = f"{param}.content.{number}"
        if isinstance(part, TextPart):
            service.model.check_text(part.text, f"{name}.text")
            parts.append(part.text)
        else:
            data = data_of(part.image_url.url, f"{name}.image_url.url")
            parts.append(
                encode_picture(service.model, data, service.bounds.pixels, f"{name}.image_url.url")
            )
            service.metrics.picture("encoded")
    return parts
