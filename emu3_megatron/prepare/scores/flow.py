"""Motion between two frames: mean length of the optical flow over the shorter side."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.errors import InputError

Flow = Callable[[np.ndarray, np.ndarray], float]
"""Score of two frames, uint8 [h, w, 3]: mean length of the flow / the shorter side."""


_RAFT_SIDE = 128  # its pyramid of correlations needs it


def flow_of(raft: Path | None, device: str) -> tuple[str, Flow]:
    """The name of the measure, for the table, and the measure. DIS needs no weights."""
    return ("raft-large", _Raft(raft, device)) if raft else ("dis", _Dis())


class _Dis:
    """OpenCV's dense inverse search, Kroeger et al. 2016 (https://arxiv.org/abs/1603.03590)."""

    def __init__(self) -> None:
        import cv2

        self._cv2: Any = cv2
        self._dis = self._cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, earlier_hwc: np.ndarray, later_hwc: np.ndarray) -> float:
        grey = [self._cv2.cvtColor(f, self._cv2.COLOR_RGB2GRAY) for f in (earlier_hwc, later_hwc)]
        flow_hwc = self._dis.calc(*grey, None)
        return _score(np.linalg.norm(flow_hwc, axis=2))


class _Raft:
    """RAFT (https://arxiv.org/abs/2003.12039), by torchvision."""

    def __init__(self, weights: Path, device: str):
        import torch

        self._network = _raft_large()
        try:
            self._network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
        except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{weights}: not the weights of raft_large ({reason})") from None
        self._network.eval().to(device)
        self._device = device

    def __call__(self, earlier_hwc: np.ndarray, later_hwc: np.ndarray) -> float:
        import torch

        frames = [self._tensor(frame) for frame in (earlier_hwc, later_hwc)]
        with torch.no_grad():
            flow_chw = self._network(*frames)[-1][0]
        return _score(flow_chw.norm(dim=0).cpu().numpy())

    def _tensor(self, frame_hwc: np.ndarray) -> Any:
        """[1, 3, h, w] in [-1, 1], sides as RAFT wants them: multiples of 8, small ones enlarged.

        The score is relative, so that enlarging changes little.
        """
        import torch
        from torch.nn.functional import interpolate

        pixels = torch.from_numpy(frame_hwc.copy()).permute(2, 0, 1).unsqueeze(0)
        pixels = pixels.float().to(self._device) / 127.5 - 1
        if (side := min(pixels.shape[2:])) < _RAFT_SIDE:
            size = [-(-length * _RAFT_SIDE // side) for length in pixels.shape[2:]]
            pixels = interpolate(pixels, size, mode="bilinear", align_corners=False)
        height, width = (length - length % 8 for length in pixels.shape[2:])
        return pixels[:, :, :height, :width]


def _raft_large() -> Any:
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:  # absent, or built for another torch
        raise InputError(
            f"clips.raft: RAFT needs the torchvision that fits this torch ({error}); pip install "
            "torchvision, or leave clips.raft out"
        ) from None
    return raft_large()


def _score(lengths_hw: np.ndarray) -> float:
    return float(lengths_hw.mean()) / min(lengths_hw.shape)
