"""POST /v1/chat/completions: answers to questions with images in them."""

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

import numpy as np

from emu3_megatron.generation.answers import MAX_TOKENS
from emu3_megatron.generation.jobs import Request
from emu3_megatron.grammar import dialogue
from emu3_megatron.serving.answering import Answering, Part, Question, Said
from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.dialogues import Message, turns_of
from emu3_megatron.serving.errors import wrong
from emu3_megatron.serving.fields import (
    Body,
    Count,
    Name,
    Seed,
    Temperature,
    TopK,
    TopP,
    only,
    parse,
    text_settings,
)
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.pictures import base64_of
from emu3_megatron.serving.service import Service
from emu3_megatron.serving.stops import Stop, stops_of
from emu3_megatron.serving.usage import Tokens, chat_usage


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(Body):
    """See docs/serving.md."""

    messages: list[Message]
    model: Name | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stop = None
    modalities: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    n: Annotated[Any, only(1)] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    presence_penalty: Annotated[Any, only(0)] = None
    logit_bias: Annotated[Any, only({})] = None
    logprobs: Annotated[Any, only(False)] = None
    top_logprobs: Annotated[Any, only(0)] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, only(True, False)] = None
    store: Annotated[Any, only(False)] = None
    service_tier: Annotated[Any, only("auto", "default")] = None


async def complete(service: Service, call: Call, outlet: Outlet) -> None:
    """Answer the last message."""
    body = parse(ChatBody, call.body)
    service.check_model(body.model)
    with service.admit(1):
        question = await service.in_worker(lambda: _question(service, body))
        answering = Answering(service, question, stops_of(body.stop))
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model.name,
        }
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            await _stream(answering, head, with_usage, outlet)
        else:
            await outlet.json(await _whole(answering, head))


def _question(service: Service, body: ChatBody) -> Question:
    """Encode the messages; raises Refused."""
    model, vocabulary = service.model, service.model.vocabulary
    turns, system = turns_of(service, body.messages)
    prompt = dialogue(vocabulary, turns, system).tokens
    draws = _draws_pictures(body.modalities)
    left = model.context - len(prompt)
    asked = body.max_completion_tokens or body.max_tokens
    tokens = asked or max(1, left if draws else min(MAX_TOKENS, left))
    model.check_length(len(prompt), tokens)
    seed = service.new_seed() if body.seed is None else body.seed
    settings = text_settings(body.temperature, body.top_k, body.top_p, seed)
    ends = (vocabulary.eos,) if draws else (vocabulary.eos, vocabulary.vision_start)
    return Question(Request(prompt, stop=ends), settings, tokens)


def _draws_pictures(modalities: Sequence[str] | None) -> bool:
    unknown = set(modalities or ()) - {"text", "image"}
    if unknown:
        raise wrong("modalities: text and image are supported", "modalities")
    return "image" in (modalities or ())


async def _whole(answering: Answering, head: dict[str, Any]) -> dict[str, Any]:
    text = ""
    pictures: list[dict[str, Any]] = []
    async with aclosing(answering.parts()) as parts:
        async for part in parts:
            if isinstance(part, str):
                text += part
            else:
                pictures.append({**_picture(part, len(pictures)), "offset": len(text)})
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if pictures:
        message["images"] = pictures
    said = answering.said
    choice = {"index": 0, "message": message, "finish_reason": said.reason, "logprobs": None}
    usage = _usage(answering, said)
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _stream(
    answering: Answering, head: dict[str, Any], with_usage: bool, outlet: Outlet
) -> None:
    """Chunks of OpenAI's, one for each new piece of text and each picture."""

    async def tell(delta: dict[str, Any], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        await outlet.event({**head, "object": kind, "choices": [choice]})

    kind, pictures = "chat.completion.chunk", 0
    await outlet.open_stream()
    await tell({"role": "assistant", "content": ""})
    async with aclosing(answering.parts()) as parts:
        async for part in parts:
            if isinstance(part, str):
                await tell({"content": part})
            else:
                await tell({"images": [_picture(part, pictures)]})
                pictures += 1
    await tell({}, answering.said.reason)
    if with_usage:
        usage = _usage(answering, answering.said)
        await outlet.event({**head, "object": kind, "choices": [], "usage": usage})
    await outlet.event("[DONE]")


def _picture(png: Part, index: int) -> dict[str, Any]:
    assert isinstance(png, bytes)
    url = f"data:image/png;base64,{base64_of(png)}"
    return {"index": index, "type": "image_url", "image_url": {"url": url}}


def _usage(answering: Answering, said: Said) -> dict[str, Any]:
    vocabulary = answering.vocabulary
    prompt = Tokens.of(vocabulary, answering.question.request.prompt)
    return chat_usage(prompt, Tokens.of(vocabulary, np.array(said.tokens, np.int64)))
