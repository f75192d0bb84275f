"""Videos that are drawn behind their calls, and kept for a while."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.serving.errors import Refused, full

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

    def start(self, video: Video, work: Callable[[Video], Coroutine[Any, Any, None]]) -> None:
        """Draw it behind the call; raises Refused when there is no place."""
        if len(self._videos) >= self._most:
            ended = next((one.id for one in self._videos.values() if one.has_ended), None)
            if ended is None:
                raise full(_RETRY_SECONDS)
            del self._videos[ended]
        self._videos[video.id] = video
        video.task = asyncio.create_task(work(video))

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
