"""POST /v1/images/generations: pictures, and while they grow their finished rows."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from emu3_megatron.generation.files.progress import rows_in
from emu3_megatron.generation.images import VisionPrompt
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.fields import (
    Body,
    Guidance,
    Name,
    Number,
    Seed,
    Temperature,
    TopK,
    TopP,
    meta_of,
    only,
    parse,
    size_of,
)
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.pictures import base64_of, png_of_rows
from emu3_megatron.serving.service import ServedModel, Service
from emu3_megatron.serving.tasks import together
from emu3_megatron.serving.usage import Tokens, image_usage

TOP_K = 2048  # as in Emu3's scripts

# A partial picture: how many there were before, and its PNG.
Preview = Callable[[int, bytes], Awaitable[None]]


class ImagesBody(Body):
    """See docs/serving.md."""

    prompt: str
    model: Name | None = None
    n: Number | None = None
    size: Name | None = None
    seed: Seed | None = None
    negative_prompt: str | None = None
    guidance: Guidance | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=128)] | None = None
    user: str | None = None
    response_format: Annotated[Any, only("b64_json")] = None
    output_format: Annotated[Any, only("png")] = None
    output_compression: Annotated[Any, only(100)] = None
    background: Annotated[Any, only("auto", "opaque")] = None
    quality: Annotated[Any, only("auto")] = None
    moderation: Annotated[Any, only("auto")] = None
    style: Annotated[Any, only()] = None


@dataclass(frozen=True)
class Plan:
    """Pictures to draw, the next with one more as the seed."""

    request: Request
    meta: Meta
    settings: SamplingSettings
    n: int

    @property
    def rows(self) -> int:
        """Of the KV pool."""
        return self.n * (1 if self.settings.guidance == 1 else 2)

    @property
    def max_tokens(self) -> int:
        return self.meta.num_tokens + 1

    def seed(self, number: int) -> int:
        return self.settings.seed + number


async def generate(service: Service, call: Call, outlet: Outlet) -> None:
    """Draw pictures and answer with them."""
    body = parse(ImagesBody, call.body)
    service.check_model(body.model)
    seed = service.new_seed() if body.seed is None else body.seed
    plan = await service.in_worker(lambda: plan_of(service.model, body, seed))
    with service.admit(plan.rows):
        if body.stream:
            await _stream(service, plan, body.partial_images or 0, outlet)
        else:
            pictures = await draw_all(service, plan)
            await outlet.json({**_about(plan), **_data(service.model, plan, pictures)})


def plan_of(model: ServedModel, body: ImagesBody, seed: int) -> Plan:
    """What a call asks for; raises Refused when it does not fit."""
    negative = body.negative_prompt or ""
    model.check_text(body.prompt, "prompt")
    model.check_text(negative, "negative_prompt")
    meta = Meta(*model.grid) if body.size in (None, "auto") else meta_of(str(body.size))
    settings = SamplingSettings(
        guidance=model.guidance if body.guidance is None else body.guidance,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or TOP_K,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=seed,
    )
    request = VisionPrompt(body.prompt, meta, negative).request(model.vocabulary)
    plan = Plan(request, meta, settings, body.n or 1)
    check_plan(model, plan)
    return plan


def check_plan(model: ServedModel, plan: Plan) -> None:
    assert plan.request.negative is not None
    longest = max(len(plan.request.prompt), len(plan.request.negative))
    model.check_length(longest, plan.max_tokens)
    model.check_rows(plan.rows // plan.n)


async def draw_all(service: Service, plan: Plan) -> list[bytes]:
    """The pictures as PNG, in order."""
    return await together(*(draw(service, plan, number) for number in range(plan.n)))


async def draw(
    service: Service, plan: Plan, number: int, previews: int = 0, show: Preview | None = None
) -> bytes:
    """A picture as PNG.

    Args:
        previews: how many partial pictures to show, at even distances; the last is the picture.
    """
    meta = plan.meta
    tokens: list[int] = []
    wanted = [-(-meta.height * (i + 1) // previews) for i in range(previews)]
    wanted = list(dict.fromkeys(wanted))
    shown, picture = 0, b""
    paint = lambda rows: service.in_worker(
        lambda: png_of_rows(service.model, meta, list(tokens), rows)
    )
    settings = replace(plan.settings, seed=plan.seed(number))
    stream = service.engine.open(plan.request, settings, plan.max_tokens)
    try:
        async for new in stream:
            tokens += new
            while show and shown < len(wanted) and wanted[shown] <= rows_in(meta, len(tokens)):
                picture = await paint(wanted[shown])
                await show(shown, picture)
                shown += 1
        stream.close("stop")
    finally:
        stream.close()
    service.metrics.picture("drawn")
    return picture if show and wanted else await paint(meta.height)


async def _stream(service: Service, plan: Plan, previews: int, outlet: Outlet) -> None:
    """Events of all pictures, as they come; `index` says of which."""
    about = _about(plan)
    kind = "image_generation"

    async def one(number: int) -> None:
        async def show(index: int, picture: bytes) -> None:
            event = {"partial_image_index": index, "b64_json": base64_of(picture)}
            await tell("partial_image", number, event)

        picture = await draw(service, plan, number, previews, show)
        usage = _usage(service.model, plan, 1)
        await tell("completed", number, {"b64_json": base64_of(picture), "usage": usage})

    async def tell(name: str, number: int, event: dict[str, Any]) -> None:
        head = {"type": f"{kind}.{name}", "index": number, "seed": plan.seed(number)}
        rest = {key: value for key, value in about.items() if key != "created"}
        await outlet.event(
            {**head, "created_at": about["created"], **rest, **event}, f"{kind}.{name}"
        )

    await outlet.open_stream()
    await together(*(one(number) for number in range(plan.n)))


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": size_of(plan.meta),
    }


def _data(model: ServedModel, plan: Plan, pictures: list[bytes]) -> dict[str, Any]:
    data = [
        {"b64_json": base64_of(picture), "seed": plan.seed(number)}
        for number, picture in enumerate(pictures)
    ]
    return {"data": data, "usage": _usage(model, plan, plan.n)}


def _usage(model: ServedModel, plan: Plan, n: int) -> dict[str, Any]:
    prompt = Tokens.of(model.vocabulary, plan.request.prompt)
    return image_usage(prompt, Tokens(image=n * plan.max_tokens))
