"""Pictures that clients send and get: opened within limits, encoded, decoded, as PNG."""

import base64
import io
import re
from collections.abc import Sequence

import torch
from PIL import Image

from emu3_megatron.errors import InputError
from emu3_megatron.generation.files.progress import image_of_rows
from emu3_megatron.generation.files.reading import vision_of
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.media.images import MAX_ASPECT, check_aspect, decode_image, size_of
from emu3_megatron.serving.errors import wrong
from emu3_megatron.serving.service import ServedModel

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,")


def data_of(url: str, param: str) -> bytes:
    """The bytes of a `data:` URL. Nothing is ever fetched or opened; raises Refused."""
    match = _DATA_URL.match(url)
    if not match:
        raise wrong(f"{param}: give the image itself, as data:image/png;base64,…", param)
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except ValueError:
        raise wrong(f"{param}: not base64", param) from None


def encode_picture(model: ServedModel, data: bytes, most_pixels: int, param: str) -> Vision:
    """The codes of an image file; raises Refused.

    What libraries say of a damaged file stays here.
    """
    _check_raster(data, most_pixels, param)
    try:
        image = decode_image(data, param).image
    except InputError:
        raise _unreadable(param) from None
    try:
        check_aspect(param, *image.size)
    except InputError:
        raise wrong(f"{param}: narrower than 1:{MAX_ASPECT}", param) from None
    return vision_of(model.tokenizer, image, model.shown)


def _check_raster(data: bytes, most: int, param: str) -> None:
    """By the header alone: a file of a few bytes may claim any size."""
    try:
        size = size_of(data, param)
    except InputError:
        raise _unreadable(param) from None
    if size is None or size[0] * size[1] > most:
        raise wrong(f"{param}: an image has {most:,} pixels at most", param)


def _unreadable(param: str) -> Exception:
    return wrong(f"{param}: not a readable image", param)


def png_of_rows(model: ServedModel, meta: Meta, tokens: Sequence[int], rows: int) -> bytes:
    """A PNG of the first rows of a picture, grey below; of all of them: the picture.

    Args:
        tokens: those behind IMG.
    """
    return _png(image_of_rows(model.tokenizer, model.vocabulary, meta, tokens, rows))


def png_of(model: ServedModel, vision: Vision) -> bytes:
    """A PNG of a picture."""
    tokens = vision.codes[0] + model.vocabulary.first_code
    ends = torch.full((len(tokens), 1), model.vocabulary.end_of_line)
    rows = torch.cat([torch.from_numpy(tokens), ends], 1)
    return png_of_rows(model, vision.meta, rows.flatten().tolist(), len(tokens))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
