"""Share of a picture that is covered by text, by OCR."""

from functools import cached_property
from typing import Any

import numpy as np


class TextArea:
    """Share of a picture that PP-OCR's boxes cover; its weights are in rapidocr's wheel.

    Only boxes in which something was recognised count.
    """

    @cached_property
    def _ocr(self) -> Any:
        from rapidocr import RapidOCR

        # The executor runs pictures in parallel; a second pool of threads would slow it down.
        threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        settings = {f"EngineConfig.onnxruntime.{name}": value for name, value in threads.items()}
        return RapidOCR(params={"Global.log_level": "error", **settings})

    def __call__(self, rgb_hwc: np.ndarray) -> float:
        """The share, 0 to 1, of pixels uint8 [h, w, 3]."""
        boxes = self._ocr(np.ascontiguousarray(rgb_hwc[:, :, ::-1])).boxes
        covered = sum(map(_polygon_area, () if boxes is None else boxes.astype(np.float64)))
        return round(min(1.0, covered / (rgb_hwc.shape[0] * rgb_hwc.shape[1])), 5)


def _polygon_area(corners: np.ndarray) -> float:
    """Area inside corners [n, 2], by the shoelace formula."""
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
