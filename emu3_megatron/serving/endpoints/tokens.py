"""Text to tokens and back, as vLLM's clients ask for it."""

from typing import Annotated, Any

from pydantic import Field

from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.fields import Body, Name, only, parse
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.service import ServedModel, Service


class TokenizeBody(Body):
    """See docs/serving.md."""

    prompt: str
    model: Name | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: Annotated[Any, only(False)] = None


class DetokenizeBody(Body):
    """See docs/serving.md."""

    tokens: list[Annotated[int, Field(ge=0)]]
    model: Name | None = None


async def tokenize(service: Service, call: Call, outlet: Outlet) -> None:
    """POST /tokenize: names of special tokens in a text stay text."""
    body = parse(TokenizeBody, call.body)
    service.check_model(body.model)
    model = service.model
    model.check_text(body.prompt, "prompt")
    # lm-eval asks so for the ids of the names that /tokenizer_info gives.
    names = {model.token_name(token): token for token in _framing(model)}
    if body.prompt in names:
        tokens = [names[body.prompt]]
    else:
        tokens = (await service.in_worker(lambda: model.vocabulary.encode(body.prompt))).tolist()
        tokens = [model.vocabulary.bos] * (body.add_special_tokens is not False) + tokens
    answer = {"count": len(tokens), "max_model_len": model.context, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [model.token_name(token) for token in tokens]
    await outlet.json(answer)


async def detokenize(service: Service, call: Call, outlet: Outlet) -> None:
    """POST /detokenize: the text of tokens; others are left out."""
    body = parse(DetokenizeBody, call.body)
    service.check_model(body.model)
    await outlet.json({"prompt": service.model.vocabulary.decode(body.tokens)})


async def info(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /tokenizer_info"""
    model = service.model
    bos, eos, pad = map(model.token_name, _framing(model))
    await outlet.json(
        {
            "tokenizer_class": model.vocabulary.encoding.name,
            "vocab_size": model.vocabulary.size,
            "model_max_length": model.context,
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "add_bos_token": True,
        }
    )


def _framing(model: ServedModel) -> tuple[int, int, int]:
    return model.vocabulary.bos, model.vocabulary.eos, model.vocabulary.pad
