"""Draws the clip of a video job and writes it as MP4."""

import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from emu3_megatron.generation.clips import save_clip
from emu3_megatron.generation.files.progress import rows_in
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.serving.errors import Refused, internal
from emu3_megatron.serving.service import ServedModel, Service
from emu3_megatron.serving.videos import Video


async def draw_video(service: Service, video: Video) -> None:
    """Draw it; the job says how far it is, and how it ended."""
    try:
        with service.admit(video.rows):
            tokens = await _say(service, video)
            video.content = await service.in_worker(lambda: _encode(service.model, video, tokens))
        service.metrics.picture("clip drawn")
        video.status, video.progress, video.completed = "completed", 100, int(time.time())
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if not isinstance(error, Refused):
            traceback.print_exc(file=sys.stderr)
        refused = error if isinstance(error, Refused) else internal()
        video.error = {"code": refused.code or "failed", "message": str(refused)}
        video.status = "failed"


async def _say(service: Service, video: Video) -> list[int]:
    meta, tokens = video.meta, []
    stream = service.engine.open(video.request, video.settings, meta.num_tokens + 1)
    try:
        async for new in stream:
            tokens += new
            video.status = "in_progress"
            rows = rows_in(meta, len(tokens))
            video.progress = min(99, 100 * rows // (meta.frames * meta.height))
        stream.close("stop")
        return tokens
    finally:
        stream.close()


def _encode(model: ServedModel, video: Video, tokens: list[int]) -> bytes:
    whole = np.append(video.request.prompt, np.array(tokens, np.int32))
    vision = parse(model.vocabulary, whole)[-1]
    assert isinstance(vision, Vision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        save_clip(model.tokenizer, vision, path)
        return path.read_bytes()
