"""Quality of a picture, 0 to 10: LAION's aesthetic score, or without weights its sharpness."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from emu3_megatron.config.prepare import QualityConfig
from emu3_megatron.errors import InputError

Quality = Callable[[Sequence[Image.Image]], list[float]]
"""Scores of RGB images, 0 to 10."""

_SIDE = 512  # the longer side at which pixels are measured
# LAION's predictor: linear layers over CLIP's ViT-L/14 embedding, dropout between them
# (christophschuhmann/improved-aesthetic-predictor).
_HEAD_LAYERS = (0, 2, 4, 6, 7)


def quality_of(config: QualityConfig, device: str) -> tuple[str, Quality]:
    """The name of the measure, for the table, and the measure.

    Raises:
        InputError: weights that cannot be read, or a head without its CLIP.
    """
    if config.clip is None and config.head is None:
        return "sharpness-exposure", lambda images: [pixel_quality(image) for image in images]
    if config.clip is None or config.head is None:
        raise InputError("quality: the aesthetic score needs both clip and head")
    return "laion-aesthetic", _Aesthetic(config.clip, config.head, device)


def pixel_quality(image: Image.Image) -> float:
    """A fallback that needs no weights: sharp, well exposed and with contrast is 10.

    In the spirit of BRISQUE, it looks at local contrast: a photo is sharp where the Laplacian of
    its luminance is strong against the luminance's own spread. It knows nothing of beauty.
    """
    grey = image.convert("L")
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    luma_hw = np.asarray(grey, np.float32)
    if min(luma_hw.shape) < 3:
        return 0.0
    spread = float(luma_hw.std())
    inner = luma_hw[1:-1, 1:-1]
    around = luma_hw[:-2, 1:-1] + luma_hw[2:, 1:-1] + luma_hw[1:-1, :-2] + luma_hw[1:-1, 2:]
    detail = float(np.abs(around - 4 * inner).mean())
    clipped = float(np.mean((luma_hw < 4) | (luma_hw > 251)))
    sharpness = 1 - np.exp(-detail / (0.04 * spread + 1.5))
    contrast = 1 - np.exp(-spread / 12)
    exposure = 1 - max(0.0, clipped - 0.3) / 0.7
    return round(10 * float(sharpness * contrast * exposure), 4)


class _Aesthetic:
    """LAION's aesthetic score: CLIP's image embedding, normed, through a small network."""

    def __init__(self, clip: Path, head: Path, device: str):
        import torch

        try:
            from transformers import CLIPImageProcessor, CLIPModel
        except ImportError:
            raise InputError("quality.clip: pip install transformers to use CLIP") from None
        try:
            self._clip = CLIPModel.from_pretrained(clip, local_files_only=True).eval().to(device)
            self._processor = CLIPImageProcessor.from_pretrained(clip, local_files_only=True)
            weights = torch.load(head, map_location=device, weights_only=True)
            layers = [
                (weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i in (_HEAD_LAYERS)
            ]
        except (OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"quality: {clip}, {head}: cannot be loaded ({reason})") from None
        if (width := layers[0][0].shape[1]) != self._clip.config.projection_dim:
            raise InputError(
                f"quality: {head} is a head over {width} values, {clip} gives "
                f"{self._clip.config.projection_dim}; give the CLIP it was trained on (ViT-L/14)"
            )
        self._layers, self._device = layers, device

    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        import torch
        from torch.nn import functional

        pixels = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.no_grad():
            vision = self._clip.vision_model(**pixels).pooler_output
            values = functional.normalize(self._clip.visual_projection(vision), dim=-1)
            for weight, bias in self._layers:
                values = functional.linear(values, weight, bias)
        return [round(float(value), 4) for value in values.squeeze(-1)]
