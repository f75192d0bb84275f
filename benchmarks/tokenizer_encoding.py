"""The vision tokenizer: the search for codes, encoding and decoding, beside the published way.

The published way takes one image at a time, sends its frame through the network four times,
computes whole distances for the search, and enlarges pictures before it convolves them. `one by
one` is this project before: the frame once, the rest as published. `faster` says how many times
less time an implementation took than the first one of its case, in the same run.

On a CPU `cpu_min_ms` counts. python benchmarks/tokenizer_encoding.py --json FILE
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from emu3_kernels.nearest_code import nearest_code
from harness import Case, main
from torch import Tensor

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.blocks import Upsample
from emu3_megatron.vision.tokenizer import VisionTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, CODES = 4096, 32768  # the latents of a 512x512 image, the published codebook


def published_search(rows_nc: Tensor, book_kc: Tensor) -> Tensor:
    """As this project searched at commit 4da1a3a."""
    codes = []
    for rows_mc in rows_nc.split(max(1, 2**25 // len(book_kc))):
        distance_mk = rows_mc.square().sum(1, keepdim=True) + book_kc.square().sum(1)
        codes.append(distance_mk.sub_(rows_mc @ book_kc.T, alpha=2).argmin(1))
    return torch.cat(codes)


class PublishedUpsample(Upsample):
    """Doubles the picture, then convolves it."""

    def _compute(self, hidden_nchw: Tensor, code_nchw: None) -> Tensor:
        return self.conv(F.interpolate(hidden_nchw, scale_factor=2.0, mode="nearest"))


def encode_one_by_one(tokenizer: VisionTokenizer, times: int, images: Tensor) -> Tensor:
    """Codes, after the frame of each image went through the network so many times."""
    found = []
    for image in images.split(1):
        frames = tokenizer.frame_latents(image.repeat(times, 1, 1, 1)).transpose(0, 1)[None]
        latents = tokenizer.merge_frames(frames.expand(-1, -1, 4, -1, -1))
        rows = latents.movedim(1, -1).flatten(0, -2)
        found.append(published_search(rows, tokenizer.quantize.embedding.weight))
    return torch.cat(found).view(len(images), *latents.shape[-2:])


def decode_one_by_one(tokenizer: VisionTokenizer, codes: Tensor) -> Tensor:
    return torch.cat([tokenizer.decode_images(one) for one in codes.split(1)])


def with_published_upsampling(tokenizer: VisionTokenizer) -> VisionTokenizer:
    """A copy."""
    copy = VisionTokenizer(tokenizer.network).to(DEVICE).eval()
    copy.load_state_dict(tokenizer.state_dict())
    for module in copy.modules():
        if isinstance(module, Upsample):
            module.__class__ = PublishedUpsample
    return copy


class Faster:
    """How many times less time than the first implementation of a case."""

    def __init__(self, count: int, expected: Callable[[], Tensor], what: str):
        self.count, self.expected, self.what = count, expected, what
        self.first: float | None = None

    def __call__(self, result: Tensor, seconds: float) -> dict[str, Any]:
        self.first = self.first or seconds
        expected = self.expected()
        if result.is_floating_point():
            error = ((result - expected).norm() / expected.norm()).item()
        else:
            error = (result != expected).double().mean().item()
        rate = {f"{self.what}_per_second": self.count / seconds}
        return {**rate, "faster": self.first / seconds, "error": error}


def search_cases(quick: bool) -> Iterator[Case]:
    rows = 256 if quick else ROWS
    torch.manual_seed(0)
    rows_nc, book_kc = torch.randn(rows, 4, device=DEVICE), torch.randn(CODES, 4, device=DEVICE)
    exact = nearest_code(rows_nc, book_kc, "reference")
    figures = Faster(rows, lambda: exact, "latents")
    for name, search in (("before", published_search), ("ours", nearest_code)):
        case = f"search {rows} x {CODES}"
        yield Case(case, name, partial(search, rows_nc, book_kc), figures, tensors=True)


@torch.no_grad()
def network_cases(preset: str, count: int, side: int) -> Iterator[Case]:
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(TokenizerNetwork(preset=preset)).to(DEVICE).eval()
    images = torch.rand(count, 3, side, side, device=DEVICE) * 2 - 1
    encode, size = partial(encode_one_by_one, tokenizer), f"{preset} {count} x {side}x{side}"
    ways = {
        "published": torch.no_grad()(partial(encode, 4, images)),
        "one by one": torch.no_grad()(partial(encode, 1, images)),
        "ours": partial(tokenizer.encode_images, images),
    }
    figures = Faster(count, partial(tokenizer.encode_images, images), "images")
    for name, run in ways.items():
        yield Case(f"encode {size}", name, run, figures, tensors=True)
    codes = tokenizer.encode_images(images)
    ways = {
        "one by one": partial(decode_one_by_one, with_published_upsampling(tokenizer), codes),
        "ours": partial(tokenizer.decode_images, codes),
    }
    figures = Faster(count, partial(tokenizer.decode_images, codes), "images")
    for name, run in ways.items():
        yield Case(f"decode {size}", name, run, figures, tensors=True)


def cases(quick: bool) -> Iterator[Case]:
    yield from search_cases(quick)
    if quick:
        yield from network_cases("tiny", count=2, side=64)
        return
    yield from network_cases("tiny", count=8, side=64)
    yield from network_cases("tiny", count=4, side=256)
    yield from network_cases("full", count=1, side=512 if DEVICE == "cuda" else 64)


if __name__ == "__main__":
    main(cases, repeats=3)
