"""Videos that are drawn behind their calls, and kept for a while."""

import asyncio
import sys
import tempfile
import time
import traceback
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from emu3_megatron.generation.clips import save_clip
from emu3_megatron.generation.files.progress import rows_in
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, parse
from emu3_megatron.serving.errors import Refused, full, internal

if TYPE_CHECKING:
    from emu3_megatron.serving.service import ServedModel, Service

Status = Literal["queued", "in_progress", "completed", "failed"]
_RETRY_SECONDS = 30


@dataclass
class Video:
    """A job.

    Attributes:
        content: MP4, when it is completed.
        progress: percent of its rows.
    """

    prompt: str
    request: Request
    meta: Meta
    settings: SamplingSettings
    seconds: str
    size: str
    id: str = field(default_factory=lambda: f"video_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    status: Status = "queued"
    progress: int = 0
    content: bytes = b""
    error: dict[str, Any] | None = None
    completed: int | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def rows(self) -> int:
        """Of the KV pool."""
        return 1 if self.settings.guidance == 1 else 2

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed")


class Videos:
    """All jobs; the oldest ended ones make way for new ones."""

    def __init__(self, most: int):
        self._most = most
        self._videos: dict[str, Video] = {}

    def start(self, service: "Service", video: Video) -> None:
        """Draw it behind the call; raises Refused when there is no place."""
        service.check_place(video.rows)
        if len(self._videos) >= self._most:
            ended = next((one.id for one in self._videos.values() if one.has_ended), None)
            if ended is None:
                raise full(_RETRY_SECONDS)
            del self._videos[ended]
        self._videos[video.id] = video
        video.task = asyncio.create_task(_draw(service, video))

    def find(self, name: str) -> Video:
        """Raises Refused when there is none."""
        if name not in self._videos:
            raise Refused(404, "there is no such video", "video_id", "no_video")
        return self._videos[name]

    def forget(self, name: str) -> None:
        """Drop a job; one that is under way ends."""
        task = self.find(name).task
        del self._videos[name]
        if task:
            task.cancel()

    def all(self) -> list[Video]:
        """The newest first."""
        return list(self._videos.values())[::-1]

    async def stop(self) -> None:
        """End those under way."""
        tasks = [video.task for video in self._videos.values() if video.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _draw(service: "Service", video: Video) -> None:
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


async def _say(service: "Service", video: Video) -> list[int]:
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


def _encode(model: "ServedModel", video: Video, tokens: list[int]) -> bytes:
    whole = np.append(video.request.prompt, np.array(tokens, np.int32))
    vision = parse(model.vocabulary, whole)[-1]
    assert isinstance(vision, Vision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        save_clip(model.tokenizer, vision, path)
        return path.read_bytes()
