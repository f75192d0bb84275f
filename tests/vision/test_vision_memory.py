"""What training keeps for backward: counted on meta tensors, and the same gradients with less."""

from contextlib import contextmanager

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision import block, tokenizer
from emu3_megatron.vision.recompute import recompute_blocks
from emu3_megatron.vision.tokenizer import VisionTokenizer

GIB = 2**30


class Saved:
    """Bytes of the storages kept for backward, each counted once; weights do not count."""

    def __init__(self, weights):
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.storages = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages[storage._cdata] = storage  # kept, so that no other gets its address
        return tensor

    @property
    def gib(self):
        return sum(storage.nbytes() for storage in self.storages.values()) / GIB


@contextmanager
def counted(network, monkeypatch):
    """What is saved in all, and of each block that is computed again what that needs at once."""
    saved, blocks = Saved(network.parameters()), [0.0]

    def checkpoint(compute, *inputs, **options):
        inside = Saved(network.parameters())
        with saved_tensors_hooks(inside.pack, lambda tensor: tensor):
            compute(*inputs)
        blocks.append(inside.gib)
        return original(compute, *inputs, **options)

    original = block.checkpoint
    monkeypatch.setattr(block, "checkpoint", checkpoint)
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved, blocks


def run_clip(network, pixels_btchw):
    latents = network.clip_latents(pixels_btchw)
    return network.decode_vectors(latents).square().mean()


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return VisionTokenizer(TokenizerNetwork(preset="full")).eval()


def test_a_clip_of_8_frames_in_the_full_network(full, monkeypatch):
    pixels = torch.empty(1, 8, 3, 256, 256, device="meta")
    recompute_blocks(full, False)
    with counted(full, monkeypatch) as (plain, _):
        run_clip(full, pixels)
    recompute_blocks(full, True)
    with counted(full, monkeypatch) as (saved, blocks):
        run_clip(full, pixels)
    assert plain.gib > 30
    assert saved.gib + max(blocks) <= 12


def gradients(network, pixels_btchw):
    run_clip(network, pixels_btchw).backward()
    trained = {n: w for n, w in network.named_parameters() if not n.startswith("quantize")}
    found = {name: weight.grad for name, weight in trained.items()}
    network.zero_grad(set_to_none=True)
    return found


@pytest.fixture(scope="module")
def small(randomise):
    network = TokenizerNetwork(preset="tiny", channel_multiplier=(1, 1, 1, 1))
    return randomise(VisionTokenizer(network)).double()


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("frames_at_once", [1, 3, 8])
def test_gradients_are_the_same(small, noise, monkeypatch, on, frames_at_once):
    pixels = noise(1, 8, 3, 24, 16).double()
    recompute_blocks(small, False)
    expected = gradients(small, pixels)

    recompute_blocks(small, on)
    monkeypatch.setattr(tokenizer, "_FOR_GRADIENTS", frames_at_once * 24 * 16)
    found = gradients(small, pixels)

    # a bias of keys changes nothing: its gradient is rounding alone
    rounding = 1e-12 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm() + rounding, name


def test_nothing_is_computed_again_without_gradients(small, noise, monkeypatch):
    recompute_blocks(small, True)
    monkeypatch.setattr(block, "checkpoint", None)
    with torch.no_grad():
        small.clip_latents(noise(1, 4, 3, 16, 16).double())
