"""Sharpness: the mean magnitude of the gradient of pixels, which blur reduces."""

from torch import Tensor


def gradient_b(pixels_bchw: Tensor) -> Tensor:
    """Mean over places and channels of sqrt(dx² + dy²), with dx and dy to the next pixel."""
    across = pixels_bchw[..., :-1, 1:] - pixels_bchw[..., :-1, :-1]
    down = pixels_bchw[..., 1:, :-1] - pixels_bchw[..., :-1, :-1]
    return (across.square() + down.square()).sqrt().flatten(1).mean(1)
