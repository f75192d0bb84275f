"""LAION's aesthetic score over a CLIP of random weights: what transformers makes of it by hand."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from emu3_megatron.config.prepare import QualityConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.scores.quality import quality_of

WIDTH = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A saved CLIP, and a head in the layout of LAION's .pth."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder / "clip")
    sizes = [WIDTH, 12, 8, 6, 4, 1]
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers += [nn.Linear(width, following), nn.Dropout()]
    head = nn.Sequential(*layers[:6], *layers[6::2])  # LAION's: dropout after the first three
    torch.save({f"layers.{name}": w for name, w in head.state_dict().items()}, folder / "head.pth")
    return folder, head.eval()


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)) for _ in range(3)]


def test_the_score_is_the_head_over_the_normed_embedding(weights, images):
    folder, head = weights
    name, quality = quality_of(QualityConfig(clip=folder / "clip", head=folder / "head.pth"), "cpu")

    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    pixels = CLIPImageProcessor.from_pretrained(folder / "clip")(images, return_tensors="pt")
    with torch.no_grad():
        embedding = clip.get_image_features(**pixels)
        embedding = getattr(embedding, "pooler_output", embedding)
        expected = head(embedding / embedding.norm(dim=-1, keepdim=True)).squeeze(-1)
    assert name == "laion-aesthetic"
    assert quality(images) == pytest.approx(expected.tolist(), abs=1e-3)


def test_half_of_the_weights_is_refused(weights):
    with pytest.raises(InputError, match="needs both clip and head"):
        quality_of(QualityConfig(clip=weights[0] / "clip"), "cpu")


def test_missing_weights_are_named(weights, tmp_path):
    with pytest.raises(InputError, match=r"head\.pth"):
        quality_of(QualityConfig(clip=weights[0] / "clip", head=tmp_path / "head.pth"), "cpu")


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_other_files_are_refused(weights, tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)

    with pytest.raises(InputError, match=r"other\.pth: cannot be loaded"):
        quality_of(QualityConfig(clip=weights[0] / "clip", head=tmp_path / "other.pth"), "cpu")


def test_a_head_over_another_clip_is_refused(weights, tmp_path):
    head = torch.load(weights[0] / "head.pth")
    head["layers.0.weight"] = torch.zeros(12, 2 * WIDTH)
    torch.save(head, tmp_path / "wide.pth")

    with pytest.raises(InputError, match=r"wide\.pth is a head over 32 values, .*clip gives 16"):
        quality_of(QualityConfig(clip=weights[0] / "clip", head=tmp_path / "wide.pth"), "cpu")


def test_without_transformers_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(InputError, match="pip install transformers"):
        quality_of(QualityConfig(clip=tmp_path, head=tmp_path / "head.pth"), "cpu")
