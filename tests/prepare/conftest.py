"""A tiny tokenizer of random weights, and folders of photos."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary.tiny()


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads that wait for busy cores take most of the time otherwise
    return VisionTokenizer(TokenizerNetwork(preset="tiny")).eval()


@pytest.fixture
def add_photo(tmp_path):
    """A function that writes a photo of noise, with a caption if one is given."""

    def add(stem, caption=None, size=(48, 32), seed=0):
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{stem}.png")
        if caption is not None:
            (folder / f"{stem}.txt").write_text(caption, encoding="utf-8")
        return folder

    return add
