"""Guided images by our engine, by that of an earlier commit, and by what transformers offers.

All have the same weights. What is measured where: generation_cpu.py, generation_gpu.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from harness import write_rows


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    if torch.cuda.is_available():
        from generation_gpu import gpu_rows

        return gpu_rows(quick)
    from generation_cpu import cpu_rows

    return cpu_rows(quick)


if __name__ == "__main__":
    write_rows(rows)
