"""Photos with captions to documents."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from emu3_megatron.grammar import Document, captioned_image, understanding
from emu3_megatron.prepare.sources import find_files
from emu3_megatron.prepare.writing import (
    Counts,
    FilteredOut,
    Job,
    check_tokenizer,
    read_caption,
    write_documents,
)
from emu3_megatron.vision.images import IMAGE_SUFFIXES, load_image, resize_to_area, to_pixels
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

ImageFilter = Callable[[Image.Image, str], bool]
"""Whether to keep a photo with its caption: the place for filters by size, quality or text."""


def prepare_images(
    source: str | Path,
    out_prefix: str | Path,
    tokenizer: VisionTokenizer,
    vocabulary: Vocabulary,
    *,
    area: int,
    understanding_fraction: float = 0.0,
    filters: Sequence[ImageFilter] = (),
    strict: bool = False,
) -> Counts:
    """Make a shard of a folder of photos, each captioned by the .txt file of its stem.

    Args:
        out_prefix: of the shard.
        area: pixels an image is resized to, its aspect kept.
        understanding_fraction: share of the photos, 0 to 1, that also become a document with the
            caption behind the image. A photo's name decides, so that it never changes sides.
        filters: each sees the photo as it was read; a photo that one rejects is left out.
        strict: refuse a photo without a caption, a broken one, or one narrower than 1:5, instead
            of skipping it.

    Raises:
        InputError: nothing usable, or with `strict` something that is not. Nothing is written then.
    """
    check_tokenizer(tokenizer, vocabulary)
    paths = find_files(source, IMAGE_SUFFIXES)
    make = partial(
        _documents,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        area=area,
        understanding_fraction=understanding_fraction,
        filters=filters,
    )
    jobs = (Job(partial(make, path)) for path in paths)
    return write_documents(
        out_prefix, vocabulary, jobs, total=len(paths), unit="image", strict=strict
    )


def _documents(
    path: Path,
    *,
    tokenizer: VisionTokenizer,
    vocabulary: Vocabulary,
    area: int,
    understanding_fraction: float,
    filters: Sequence[ImageFilter],
) -> list[Document]:
    caption = read_caption(path)
    image = load_image(path)
    if not all(keep(image, caption) for keep in filters):
        raise FilteredOut
    pixels_chw = to_pixels(resize_to_area(image, area))
    codes_hw = tokenizer.encode_images(pixels_chw.unsqueeze(0)).squeeze(0).cpu().numpy()
    documents = [captioned_image(vocabulary, caption, codes_hw)]
    if zlib.crc32(path.name.encode()) < understanding_fraction * 2**32:
        documents.append(understanding(vocabulary, codes_hw, caption))
    return documents
