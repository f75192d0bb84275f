"""/v1/videos: clips that are drawn behind their calls."""

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from emu3_megatron.generation.clips import FPS, clip_meta
from emu3_megatron.generation.images import VisionPrompt
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.clips import draw_video
from emu3_megatron.serving.endpoints.images import TOP_K
from emu3_megatron.serving.errors import Refused, wrong
from emu3_megatron.serving.fields import (
    Body,
    Guidance,
    Name,
    Seed,
    Temperature,
    TopK,
    TopP,
    meta_of,
    only,
    parse,
    parse_values,
    size_of,
)
from emu3_megatron.serving.forms import read_form
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.service import ServedModel, Service
from emu3_megatron.serving.videos import Video

_SECONDS = 4.0  # where a call does not say, as OpenAI's
_MOST_SECONDS, _MOST_FPS = 60.0, 60.0


class VideosBody(Body):
    """See docs/serving.md."""

    prompt: str
    model: Name | None = None
    seconds: Annotated[str, Field(max_length=8)] | float | None = None
    size: Name | None = None
    fps: Annotated[float, Field(gt=0, le=_MOST_FPS)] | None = None
    seed: Seed | None = None
    negative_prompt: str | None = None
    guidance: Guidance | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    input_reference: Annotated[Any, only()] = None


async def create(service: Service, call: Call, outlet: Outlet) -> None:
    """POST /v1/videos: begin to draw one."""
    if call.kind.startswith("multipart/form-data"):
        # All that a form has are strings.
        body = parse_values(VideosBody, read_form(call.kind, call.body), strict=False)
    else:
        body = parse(VideosBody, call.body)
    service.check_model(body.model)
    seed = service.new_seed() if body.seed is None else body.seed
    video = await service.in_worker(lambda: _video(service.model, body, seed))
    service.check_place(video.rows)
    service.videos.start(video, partial(draw_video, service))
    await outlet.json(_describe(service, video))


async def find(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /v1/videos/ID"""
    await outlet.json(_describe(service, service.videos.find(call.names["video"])))


async def listing(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /v1/videos"""
    data = [_describe(service, video) for video in service.videos.all()]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    await outlet.json({"object": "list", "data": data, "has_more": False, **ends})


async def content(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /v1/videos/ID/content: the MP4."""
    video = service.videos.find(call.names["video"])
    if video.status != "completed":
        raise Refused(409, f"the video is {video.status.replace('_', ' ')}", code="not_ready")
    await outlet.content(video.content, "video/mp4")


async def delete(service: Service, call: Call, outlet: Outlet) -> None:
    """DELETE /v1/videos/ID"""
    name = call.names["video"]
    service.videos.forget(name)
    await outlet.json({"id": name, "object": "video.deleted", "deleted": True})


def _video(model: ServedModel, body: VideosBody, seed: int) -> Video:
    """What a call asks for; raises Refused when it does not fit."""
    negative = body.negative_prompt or ""
    model.check_text(body.prompt, "prompt")
    model.check_text(negative, "negative_prompt")
    grid = Meta(*model.grid) if body.size in (None, "auto") else meta_of(str(body.size))
    seconds = _seconds(body.seconds)
    meta = clip_meta(grid.height, grid.width, seconds, body.fps or FPS)
    settings = SamplingSettings(
        guidance=model.guidance if body.guidance is None else body.guidance,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or TOP_K,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=seed,
    )
    request = VisionPrompt(body.prompt, meta, negative).request(model.vocabulary)
    assert request.negative is not None
    model.check_length(max(len(request.prompt), len(request.negative)), meta.num_tokens + 1)
    video = Video(body.prompt, request, meta, settings, f"{seconds:g}", size_of(meta))
    model.check_rows(video.rows)
    return video


def _seconds(given: str | float | None) -> float:
    try:
        seconds = _SECONDS if given is None else float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise wrong(f"seconds: give more than 0, at most {_MOST_SECONDS:g}", "seconds")
    return seconds


def _describe(service: Service, video: Video) -> dict[str, Any]:
    return {
        "id": video.id,
        "object": "video",
        "model": service.model.name,
        "status": video.status,
        "progress": video.progress,
        "created_at": video.created,
        "completed_at": video.completed,
        "error": video.error,
        "prompt": video.prompt,
        "seconds": video.seconds,
        "size": video.size,
        "fps": video.meta.fps,
        "seed": video.settings.seed,
    }
