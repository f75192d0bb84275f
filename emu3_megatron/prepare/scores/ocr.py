"""Share of a picture that is covered by text, by OCR."""

from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

_MAX_ASPECT = 5  # PP-OCR enlarges the shorter side to 736 pixels, however long the other becomes
_MAX_SIDE = 2000  # PP-OCR reduces to it
_MIN_SIDE = 8  # pixels in which a letter can be told


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
        if min(rgb_hwc.shape[:2]) < _MIN_SIDE:
            return 0.0
        rgb_hwc, area = bounded(rgb_hwc)
        boxes = self._ocr(np.ascontiguousarray(rgb_hwc[:, :, ::-1])).boxes
        covered = sum(map(_polygon_area, () if boxes is None else boxes.astype(np.float64)))
        return round(min(1.0, covered / area), 5)


def bounded(rgb_hwc: np.ndarray) -> tuple[np.ndarray, int]:
    """The picture, no narrower than 1:5, so that OCR takes no more time and memory than for others.

    Returns:
        Pixels [h, w, 3], of a narrow picture reduced and with white beside it; and how many of them
        are the picture's.
    """
    height, width, _ = rgb_hwc.shape
    if max(height, width) <= _MAX_ASPECT * min(height, width):
        return rgb_hwc, height * width
    image = Image.fromarray(rgb_hwc)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    least = -(-max(image.size) // _MAX_ASPECT)
    canvas = Image.new("RGB", (max(image.width, least), max(image.height, least)), "white")
    canvas.paste(image)
    return np.asarray(canvas), image.width * image.height


def _polygon_area(corners: np.ndarray) -> float:
    """Area inside corners [n, 2], by the shoelace formula."""
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
