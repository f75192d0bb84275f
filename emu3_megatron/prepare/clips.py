"""Clips with captions to documents."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, captioned_clip
from emu3_megatron.prepare.sources import find_files
from emu3_megatron.prepare.writing import (
    Counts,
    FilteredOut,
    Job,
    check_tokenizer,
    read_caption,
    write_documents,
)
from emu3_megatron.vision.clips import CLIP_SUFFIXES, Clip, read_clip
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

ClipFilter = Callable[[Clip, str], bool]
"""Whether to keep a clip with its caption: the place for filters by motion, quality or text."""


def prepare_clips(
    source: str | Path,
    out_prefix: str | Path,
    tokenizer: VisionTokenizer,
    vocabulary: Vocabulary,
    *,
    area: int,
    fps: float | None = None,
    num_frames: int | None = None,
    filters: Sequence[ClipFilter] = (),
    strict: bool = False,
) -> Counts:
    """Make a shard of a folder of clips, each captioned by the .txt file of its stem.

    Args:
        out_prefix: of the shard.
        area: pixels each frame is resized to, its aspect kept.
        fps: frames a second to take; each clip's own rate by default.
        num_frames: take at most so many from the beginning; all by default. Four frames make one
            latent frame, and a rest is left out.
        filters: each sees the clip as it was read; a clip that one rejects is left out.
        strict: refuse a clip without a caption, or that cannot be read, instead of skipping it.

    Raises:
        InputError: nothing usable, or with `strict` something that is not. Nothing is written then.
    """
    check_tokenizer(tokenizer, vocabulary)
    paths = find_files(source, CLIP_SUFFIXES)
    read = partial(read_clip, area=area, fps=fps, num_frames=num_frames)
    jobs = (Job(partial(_documents, path, read, tokenizer, vocabulary, filters)) for path in paths)
    return write_documents(
        out_prefix, vocabulary, jobs, total=len(paths), unit="clip", strict=strict
    )


def _documents(
    path: Path,
    read: Callable[[Path], Clip],
    tokenizer: VisionTokenizer,
    vocabulary: Vocabulary,
    filters: Sequence[ClipFilter],
) -> list[Document]:
    caption = read_caption(path)
    clip = read(path)
    if not all(keep(clip, caption) for keep in filters):
        raise FilteredOut
    try:
        codes_fhw = tokenizer.encode_clips(clip.pixels_tchw.unsqueeze(0)).squeeze(0).cpu().numpy()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    seconds = len(codes_fhw) * tokenizer.temporal_factor / clip.fps
    return [captioned_clip(vocabulary, caption, codes_fhw, clip.fps, seconds)]
