"""Measures beside the rule's score: what learning a preference must not spoil.

A model that forgets what captions mean may still please the rule. `Recogniser` sees that in
samples, `code_nll` in pictures that nobody generated.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rule import shapes

from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.source import Piece
from emu3_megatron.grammar import captioned_image
from emu3_megatron.media.images import to_pixels
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.placing import Placer
from emu3_megatron.vision.tokenizer import VisionTokenizer

VIVID = {"dull": (0.0, 0.3), "vivid": (0.7, 1.0)}
ATTRIBUTES = ("size", "colour", "shape")
_LONGEST = 128  # tokens of a picture with its caption


def draw(
    subjects: Sequence[shapes.Subject], each: int, vivid: tuple[float, float], seed: int
) -> tuple[list[shapes.Subject], torch.Tensor]:
    """Subjects, each so many times, and their pictures, [n, 3, height, width] in -1..1."""
    random = np.random.default_rng(seed)
    shown = [subject for subject in subjects for _ in range(each)]
    drawn = [shapes.draw(subject, random.uniform(*vivid), random) for subject in shown]
    return shown, torch.stack([to_pixels(image) for image in drawn])


@torch.no_grad()
def code_nll(
    checkpoint: Path, mesh: Mesh, tokenizer: VisionTokenizer, each: int = 16
) -> dict[str, float]:
    """Mean loss of codes, in nats, on drawn pictures of unseen subjects, by how vivid they are."""
    decoder, recipe = open_decoder(checkpoint, mesh)
    vocabulary = recipe.model.vocabulary()
    builder = RowBuilder(vocabulary, _LONGEST, {"code": 1.0})
    found = {}
    for seed, (name, vivid) in enumerate(VIVID.items()):
        subjects, pixels = draw(shapes.UNSEEN, each, vivid, seed)
        codes = tokenizer.encode_images(pixels).numpy()
        documents = [
            captioned_image(vocabulary, subject.caption, picture)
            for subject, picture in zip(subjects, codes, strict=True)
        ]
        rows = [[Piece(document.tokens, None, name, i)] for i, document in enumerate(documents)]
        inputs = Placer(vocabulary, 0)(builder.batch(rows)).inputs
        log_prob = decoder(inputs, "log_probabilities").log_prob
        found[name] = -log_prob[inputs.weights_bs > 0].mean().item()
    return found


class Recogniser:
    """Says what a picture shows: what the most similar of many drawn pictures shows.

    Pictures are compared without their mean and contrast, so that dull ones and vivid ones are
    recognised alike.
    """

    def __init__(self, each: int = 64):
        self._shown, pixels = draw(shapes.SUBJECTS, each, (0.2, 1.0), seed=10)
        self._known = _features(pixels)

    def of_samples(self, folder: Path) -> dict[str, float]:
        """Share of samples of unseen prompts whose caption's size, colour, shape is recognised."""
        files = sorted((folder / "media").glob("*.png"))
        subjects = [shapes.UNSEEN[int(file.stem.partition("-")[0])] for file in files]
        pixels = torch.stack([to_pixels(Image.open(file).convert("RGB")) for file in files])
        return self._shares(subjects, pixels)

    def of_drawn(self, tokenizer: VisionTokenizer, each: int = 8) -> dict[str, float]:
        """The same of drawn pictures of unseen subjects that went through the tokenizer."""
        subjects, pixels = draw(shapes.UNSEEN, each, (0.2, 1.0), seed=11)
        return self._shares(subjects, tokenizer.decode_images(tokenizer.encode_images(pixels)))

    def _shares(self, subjects: list[shapes.Subject], pixels: torch.Tensor) -> dict[str, float]:
        nearest = (_features(pixels) @ self._known.T).argmax(1).tolist()
        pairs = [(self._shown[i], subject) for i, subject in zip(nearest, subjects, strict=True)]
        return {
            name: float(np.mean([getattr(a, name) == getattr(b, name) for a, b in pairs]))
            for name in ATTRIBUTES
        }


def _features(pixels: torch.Tensor) -> torch.Tensor:
    """Unit vectors, [n, values]."""
    centred = pixels.clamp(-1, 1) - pixels.mean((2, 3), keepdim=True)
    return torch.nn.functional.normalize(centred.flatten(1))
