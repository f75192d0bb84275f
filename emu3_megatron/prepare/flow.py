"""How much a clip moves: mean optical flow over the shorter side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.errors import InputError

Flow = Callable[[np.ndarray, np.ndarray], float]
"""Score of two frames, uint8 [h, w, 3]: mean length of the flow / the shorter side."""


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
        try:
            import torch
            from torchvision.models.optical_flow import raft_large

            self._network = raft_large()
            self._network.load_state_dict(torch.load(weights, map_location="cpu"))
        except ImportError:
            raise InputError("clips.raft: pip install torchvision to use RAFT") from None
        except (OSError, RuntimeError) as error:
            raise InputError(f"{weights}: not the weights of raft_large ({error})") from None
        self._network.eval().to(device)
        self._device = device

    def __call__(self, earlier_hwc: np.ndarray, later_hwc: np.ndarray) -> float:
        import torch

        frames = [self._tensor(frame) for frame in (earlier_hwc, later_hwc)]
        with torch.no_grad():
            flow_chw = self._network(*frames)[-1][0]
        return _score(flow_chw.norm(dim=0).cpu().numpy())

    def _tensor(self, frame_hwc: np.ndarray) -> Any:
        """[1, 3, h, w] in [-1, 1], sides cut to multiples of 8 as RAFT wants them."""
        import torch

        height, width = (side - side % 8 for side in frame_hwc.shape[:2])
        pixels = torch.from_numpy(frame_hwc[:height, :width].copy()).permute(2, 0, 1)
        return (pixels.float() / 127.5 - 1).unsqueeze(0).to(self._device)


def _score(lengths_hw: np.ndarray) -> float:
    return float(lengths_hw.mean()) / min(lengths_hw.shape)
