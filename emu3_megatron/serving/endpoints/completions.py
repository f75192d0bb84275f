"""POST /v1/completions: text behind prompts, and log-probabilities of given tokens."""

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from emu3_megatron.generation.jobs import Request
from emu3_megatron.grammar import open_prompt
from emu3_megatron.serving.answering import Answering, Question
from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.endpoints.chat import StreamOptions
from emu3_megatron.serving.errors import wrong
from emu3_megatron.serving.fields import (
    Body,
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
from emu3_megatron.serving.scoring import Scores
from emu3_megatron.serving.service import ServedModel, Service
from emu3_megatron.serving.stops import Stop, stops_of
from emu3_megatron.serving.tasks import together
from emu3_megatron.serving.usage import Tokens, chat_usage

_PROMPTS = 128  # of a call
_TOKENS = 16  # of a result, where a call does not say, as OpenAI's


class CompletionsBody(Body):
    """See docs/serving.md."""

    prompt: str | list[str] | list[int] | list[list[int]]
    model: Name | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stop = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Annotated[Any, only(1)] = None
    best_of: Annotated[Any, only(1)] = None
    suffix: Annotated[Any, only("")] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    presence_penalty: Annotated[Any, only(0)] = None
    logit_bias: Annotated[Any, only({})] = None


@dataclass(frozen=True)
class Result:
    """What came of a prompt.

    Attributes:
        tokens: those that were said.
        scores: of prompt and result, if they were asked for.
    """

    prompt: np.ndarray
    tokens: list[int]
    text: str
    reason: str
    scores: Scores | None = None


async def complete(service: Service, call: Call, outlet: Outlet) -> None:
    """Go on from each prompt."""
    body = parse(CompletionsBody, call.body)
    service.check_model(body.model)
    most = _TOKENS if body.max_tokens is None else body.max_tokens
    prompts = await service.in_worker(lambda: _prompts(service.model, body, most))
    seed = service.new_seed() if body.seed is None else body.seed
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.model.name,
    }
    questions = [_question(service.model, body, prompt, most, seed) for prompt in prompts]
    with service.admit(len(prompts)):
        if body.stream:
            await _stream(service, body, questions, head, outlet)
            return
        results = await together(*(_result(service, body, question) for question in questions))
    choices = [_choice(service.model, body, i, result) for i, result in enumerate(results)]
    usage = _usage(service.model, prompts, [result.tokens for result in results])
    await outlet.json({**head, "choices": choices, "usage": usage})


def _prompts(model: ServedModel, body: CompletionsBody, most: int) -> list[np.ndarray]:
    """Tokens of each prompt: of a text with BOS in front, ids as they are."""
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 0 < len(given) <= _PROMPTS:
        raise wrong(f"prompt: give 1 to {_PROMPTS} prompts", "prompt")
    if body.stream and (body.echo or body.logprobs is not None):
        raise wrong("stream: not supported together with echo or logprobs", "stream")
    if most == 0 and not body.echo:
        raise wrong("max_tokens: 0 is for echo", "max_tokens")
    prompts = [_tokens(model, one) for one in given]
    for prompt in prompts:
        model.check_length(len(prompt), most)
    return prompts


def _tokens(model: ServedModel, given: str | Sequence[int]) -> np.ndarray:
    if isinstance(given, str):
        model.check_text(given, "prompt")
        return open_prompt(model.vocabulary, [given])
    if not given or not all(0 <= token < model.vocabulary.size for token in given):
        raise wrong(f"prompt: give ids from 0 to {model.vocabulary.size - 1:,}", "prompt")
    return np.array(given, np.int32)


def _question(
    model: ServedModel, body: CompletionsBody, prompt: np.ndarray, most: int, seed: int
) -> Question:
    ends = (model.vocabulary.eos, model.vocabulary.vision_start)
    settings = text_settings(body.temperature, body.top_k, body.top_p, seed)
    return Question(Request(prompt, stop=ends), settings, most)


async def _result(service: Service, body: CompletionsBody, question: Question) -> Result:
    prompt, text, tokens, reason = question.request.prompt, "", [], "length"
    if question.max_tokens:
        answering = Answering(service, question, stops_of(body.stop))
        async with aclosing(answering.parts()) as parts:
            async for part in parts:
                text += str(part)
        tokens, reason = answering.said.tokens, answering.said.reason
    scores = None
    if body.logprobs is not None and len(prompt) + len(tokens) > 1:
        whole = np.append(prompt, np.array(tokens, np.int32))
        scores = await service.engine.score(whole, max(1, body.logprobs))
    return Result(prompt, tokens, text, reason, scores)


async def _stream(
    service: Service,
    body: CompletionsBody,
    questions: Sequence[Question],
    head: dict[str, Any],
    outlet: Outlet,
) -> None:
    async def one(index: int, question: Question) -> list[int]:
        async def tell(text: str, reason: str | None = None) -> None:
            choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
            await outlet.event({**head, "choices": [choice]})

        answering = Answering(service, question, stops_of(body.stop))
        async with aclosing(answering.parts()) as parts:
            async for part in parts:
                await tell(str(part))
        await tell("", answering.said.reason)
        return answering.said.tokens

    await outlet.open_stream()
    said = await together(*(one(i, question) for i, question in enumerate(questions)))
    if body.stream_options and body.stream_options.include_usage:
        prompts = [question.request.prompt for question in questions]
        usage = _usage(service.model, prompts, said)
        await outlet.event({**head, "choices": [], "usage": usage})
    await outlet.event("[DONE]")


def _choice(
    model: ServedModel, body: CompletionsBody, index: int, result: Result
) -> dict[str, Any]:
    text = result.text
    if body.echo:
        text = model.vocabulary.decode(result.prompt) + text
    logprobs = None
    if body.logprobs is not None:
        logprobs = _log_probabilities(model, result, bool(body.echo), body.logprobs)
    return {"index": index, "text": text, "finish_reason": result.reason, "logprobs": logprobs}


def _log_probabilities(
    model: ServedModel, result: Result, echo: bool, top: int
) -> dict[str, list[Any]]:
    """As OpenAI's older endpoint has them; the first token of a prompt has none."""
    tokens = [*map(int, result.prompt), *result.tokens]
    names = [model.token_name(token) for token in tokens]
    own: list[float | None] = [None]
    likeliest: list[dict[str, float] | None] = [None]
    if scores := result.scores:
        own += scores.own.tolist()
        for i, (ids, values) in enumerate(zip(scores.top_ids, scores.top, strict=True)):
            pairs = zip(ids.tolist()[:top], values.tolist(), strict=False)
            there = {model.token_name(token): value for token, value in pairs}
            likeliest.append({**there, names[i + 1]: float(scores.own[i])})
    offsets = np.cumsum([0, *(len(name) for name in names[:-1])]).tolist()
    first = 0 if echo else len(result.prompt)
    return {
        "tokens": names[first:],
        "token_logprobs": own[first:],
        "top_logprobs": likeliest[first:],
        "text_offset": offsets[first:],
    }


def _usage(
    model: ServedModel, prompts: Sequence[np.ndarray], said: Sequence[Sequence[int]]
) -> dict[str, Any]:
    count = lambda tokens: Tokens.of(model.vocabulary, np.array(tokens, np.int64))
    return chat_usage(sum(map(count, prompts), Tokens()), sum(map(count, said), Tokens()))
