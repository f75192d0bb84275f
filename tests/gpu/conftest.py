"""Tests that need a GPU; `make gpu` runs them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    torch.manual_seed(0)
