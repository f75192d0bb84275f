"""Encodes images and clips with the vision tokenizer, in batches of one size."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import reason_of
from emu3_megatron.media.images import to_pixels
from emu3_megatron.prepare.items import RunFault
from emu3_megatron.vision.tiling import encode_pieces
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

# Old versions of torch know AcceleratorError as a RuntimeError without a name.
_OF_THE_DEVICE = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)
_BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 16 << 20}


class Coder:
    """The vision tokenizer on a device.

    Raises:
        InputError: it cannot be read, or has other codes than the vocabulary.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, device: str):
        self._tokenizer = VisionTokenizer.load(folder).to(device)
        refuse_other_codes(self._tokenizer.network, vocabulary)
        self._device = device

    def images(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Codes [h / 8, w / 8] of images whose sides are divisible by 8.

        Images of one size share a batch. Which ones do depends on the arguments alone.
        """
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            by_size[image.size].append(number)
        codes: list[np.ndarray] = [np.empty(0)] * len(images)
        for (width, height), numbers in by_size.items():
            at_once = max(1, _BATCH_PIXELS[self._device] // (width * height))
            for first in range(0, len(numbers), at_once):
                batch = numbers[first : first + at_once]
                pixels = torch.stack([to_pixels(images[i]) for i in batch]).to(self._device)
                with _device_faults():
                    encoded = self._tokenizer.encode_images(pixels).cpu().numpy()
                for number, codes_hw in zip(batch, encoded, strict=True):
                    codes[number] = codes_hw
        return codes

    def clip(self, pieces: Iterable[Tensor]) -> np.ndarray:
        """Codes [t // 4, h / 8, w / 8] of a clip; what follows the last four frames is left out.

        Args:
            pieces: pixels [t, 3, h, w]; no more than one is held.
        """
        with _device_faults():
            encoded = [codes.cpu() for codes in encode_pieces(self._tokenizer, pieces)]
            return torch.cat(encoded).numpy()


@contextmanager
def _device_faults() -> Iterator[None]:
    """A GPU that is full or broken is no fault of the item that was encoded."""
    try:
        yield
    except _OF_THE_DEVICE as error:
        raise RunFault(f"run.device=cuda: {reason_of(error)}") from None


def refuse_other_codes(network: TokenizerNetwork, vocabulary: Vocabulary) -> None:
    """Raises InputError when the tokenizer has other codes than the vocabulary."""
    if network.codebook_size != vocabulary.num_codes:
        raise InputError(
            f"tokenizer: it has {network.codebook_size:,} codes, the model's vocabulary "
            f"{vocabulary.num_codes:,}; use the tokenizer that belongs to the model"
        )
