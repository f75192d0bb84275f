"""PSNR and SSIM of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Of Wang et al., Image quality assessment (2004): the window, and what keeps divisions stable.
SSIM_SIDE, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
EXACT_DB = 100.0  # what an exact copy counts, so that one black picture makes no mean infinite


def psnr_b(one_bchw: Tensor, other_bchw: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images, in dB; infinite where they are equal.

    Args:
        one_bchw, other_bchw: pixels in [0, 1].
    """
    error_b = (one_bchw - other_bchw).square().flatten(1).mean(1)
    return -10 * error_b.log10()


def ssim_b(one_bchw: Tensor, other_bchw: Tensor) -> Tensor:
    """Structural similarity of each pair of images, the mean over whole windows and channels.

    Args:
        one_bchw, other_bchw: pixels in [0, 1], at least 11 a side.
    """
    one, other = one_bchw.double(), other_bchw.double()
    mean_one, mean_other = _blur(one), _blur(other)
    variance_one = _blur(one * one) - mean_one.square()
    variance_other = _blur(other * other) - mean_other.square()
    covariance = _blur(one * other) - mean_one * mean_other
    c1, c2 = _K1**2, _K2**2
    similar = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    size = (mean_one.square() + mean_other.square() + c1) * (variance_one + variance_other + c2)
    return (similar / size).flatten(1).mean(1)


def _blur(x_bchw: Tensor) -> Tensor:
    """Gaussian means around every place whose window lies inside."""
    places = torch.arange(SSIM_SIDE, dtype=x_bchw.dtype, device=x_bchw.device) - SSIM_SIDE // 2
    weights = (-(places**2) / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()
    flat = x_bchw.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights[None, None, :, None]), weights[None, None, None, :])
    return flat.unflatten(0, x_bchw.shape[:2])[:, :, 0]
