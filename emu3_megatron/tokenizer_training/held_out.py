"""Measures held-out photos and clips while a tokenizer trains, and draws some of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from emu3_megatron.config.tokenizer_training import TokenizerValidationConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from emu3_megatron.parallel import Mesh
from emu3_megatron.vision.files import At, kind_of
from emu3_megatron.vision.measures.reconstruction import (
    Measured,
    codec_of,
    joined,
    means,
    measure,
)
from emu3_megatron.vision.tokenizer import VisionTokenizer

_AT_ONCE = 8  # files between two questions whether to go on


class HeldOutFiles:
    """Reconstruction through the codes, as `runs.interfaces.Evaluator`. Ranks share the files.

    Args:
        tokenizer: gives the weights to evaluate; None while their codes are not placed.

    Raises:
        InputError: there are no files.
    """

    def __init__(
        self,
        config: TokenizerValidationConfig,
        tokenizer: Callable[[], VisionTokenizer | None],
        mesh: Mesh,
    ):
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh
        self.paths = find_files(config.images, IMAGE_SUFFIXES)
        if config.clips:
            self.paths += find_files(config.clips, VIDEO_SUFFIXES)

    def measure(self, goes_on: Callable[[], bool]) -> dict[str, float] | None:
        """See `runs.interfaces.Evaluator`: `images/psnr_db` and the like, of each kind of files.

        `unusable_files` cannot be read, or come back with NaN in them.

        Raises:
            InputError: none of the files can be used.
        """
        measured = self._measured(goes_on)
        if measured is None:
            return None
        unusable = [*measured.failed, *measured.broken]
        if not measured.kept:
            first = unusable[0]
            raise InputError(f"{first.path}: {first.reason}; no file of validation can be used")
        found: dict[str, float] = {"unusable_files": len(unusable)}
        for kind in ("image", "clip"):
            if kept := measured.of_kind(kind):
                found |= {f"{kind}s/{_named(n)}": value for n, value in means(kept).items()}
                if usage := measured.usage(kind):
                    found[f"{kind}s/codebook_usage"] = usage.share
                    found[f"{kind}s/codebook_perplexity"] = usage.perplexity
        return found

    def _measured(self, goes_on: Callable[[], bool]) -> Measured | None:
        """Of all ranks' files."""
        tokenizer = self.tokenizer()
        if tokenizer is None:
            return None
        codec = codec_of(tokenizer)
        at = At(self.config.area)
        parts: list[Measured] = []
        for first in range(0, len(self.paths), _AT_ONCE * self.mesh.size):
            if not goes_on():
                return None
            some = self.paths[first : first + _AT_ONCE * self.mesh.size]
            parts.append(measure(codec, some[self.mesh.rank :: self.mesh.size], at))
        gathered: list[Sequence[Measured]] = [[]] * self.mesh.size
        dist.all_gather_object(gathered, parts)
        return joined([part for of_rank in gathered for part in of_rank])

    def shown(self) -> Iterator[tuple[Path, Tensor, Tensor]]:
        """Path, true and rebuilt frames [t, 3, h, w], bytes, of the files that are drawn."""
        tokenizer = self.tokenizer()
        if tokenizer is None:
            return
        codec, at = codec_of(tokenizer), At(self.config.area)
        watch = lambda path, given, shown: found.append((path, given, shown))
        for kind in ("image", "clip"):
            found: list[tuple[Path, Tensor, Tensor]] = []
            for path in (path for path in self.paths if kind_of(path) == kind):
                if len(found) == self.config.shown:
                    break
                measure(codec, [path], at, watch=watch)
            yield from found


def _named(name: str) -> str:
    return {"PSNR": "psnr_db", "SSIM": "ssim"}.get(name, name.replace(" ", "_"))
