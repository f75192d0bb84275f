"""How the mask is divided for kernels that take a part a call; stand-ins for GPU kernels."""

import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from emu3_kernels.attention_tile import (
    KeyRanges,
    Tile,
    attention_delta,
    attention_tile,
    backends,
    cudnn,
    flash,
    flash_attn,
    packed,
    reference,
)

QUERIES, KEYS, SCALE = 70, 80, 0.3
# Segments, and how many calls a packed kernel needs for them.
LAYOUTS = {
    "documents": ([(0, 1, 0, 1, 1), (1, 30, 1, 30, 1), (30, 70, 30, 70, 1)], 1),
    "gaps": ([(2, 20, 5, 23, 1), (25, 30, 23, 26, 1), (40, 70, 30, 80, 1)], 1),
    "blocks dealt out": ([(0, 32, 0, 32, 1), (32, 64, 0, 64, 1)], 2),
    "of both kinds": ([(0, 32, 0, 16, 0), (32, 64, 16, 48, 1)], 2),
    "one key for many": ([(0, 32, 0, 1, 0), (32, 64, 1, 48, 1)], 2),
    "nothing": ([], 0),
}


def attend(implementation, tile, dout):
    """out, lse, dq, dk, dv."""
    out, lse = implementation.forward(tile, None)
    gradients = [torch.zeros_like(t, dtype=lse.dtype) for t in tile.inputs]
    implementation.backward(tile, dout, attention_delta(dout, out), lse, gradients)
    return [out, lse, *gradients]


def gradients_of(dout, tile, out, lse):
    gradients = [torch.zeros_like(t) for t in tile.inputs]
    reference.backward(tile, dout, attention_delta(dout, out), lse, gradients)
    return gradients


class Packed:
    """What a packed call is documented to mean: causal is aligned at the ends."""

    def forward(self, q, k, v, q_borders, k_borders, q_longest, k_longest, causal, scale):
        assert (q_longest, k_longest) == (q_borders.diff().max(), k_borders.diff().max())
        tile = self.tile(q, k, v, q_borders, k_borders, causal, scale)
        out, lse = reference.forward(tile, None)
        return out, lse.masked_fill(lse == -torch.inf, torch.inf)

    def backward(self, dout, q, k, v, out, lse, q_borders, k_borders, *longest, causal, scale):
        assert lse.is_contiguous()
        return gradients_of(dout, self.tile(q, k, v, q_borders, k_borders, causal, scale), out, lse)

    def tile(self, q, k, v, q_borders, k_borders, causal, scale):
        spans = zip(pairwise(q_borders.tolist()), pairwise(k_borders.tolist()), strict=True)
        segments = [(*q_span, *k_span, causal) for q_span, k_span in spans]
        return Tile(q, k, v, KeyRanges.of_segments(segments, len(q), len(k)), scale)


class TorchsFlash(Packed):
    """torch.ops.aten, as torch's schemas have it."""

    def _flash_attention_forward(self, *arguments, scale):
        *arguments, dropout, causal, debug = arguments
        assert (dropout, debug) == (0.0, False)
        return *self.forward(*arguments, causal, scale), None, None, None

    def _flash_attention_backward(self, *arguments, scale):
        *arguments, _dropout, causal, _rng, _unused = arguments
        return self.backward(*arguments, causal=causal, scale=scale)


class PackageFlash(Packed):
    """flash_attn.flash_attn_interface, as version 2.8 has it."""

    def _flash_attn_varlen_forward(self, *arguments, dropout_p, softmax_scale, causal):
        return *self.forward(*arguments, causal, softmax_scale), None, None

    def _flash_attn_varlen_backward(
        self, dout, q, k, v, out, lse, dq, dk, dv, *bounds,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right,
        softcap, alibi_slopes, deterministic,
    ):  # fmt: skip
        assert (window_size_left, window_size_right, softcap) == (-1, -1, 0.0)  # none of them
        found = self.backward(dout, q, k, v, out, lse, *bounds, causal=causal, scale=softmax_scale)
        for gradient, values in zip((dq, dk, dv), found, strict=True):
            gradient.copy_(values)


class CuDNN:
    """torch.ops.aten's cuDNN attention: tensors [1, h, t, d], lse [1, h, t, 1], squares causal."""

    def _scaled_dot_product_cudnn_attention(
        self, q, k, v, bias, with_lse, dropout, causal, debug, *, scale
    ):
        assert (bias, with_lse, dropout, debug) == (None, True, 0.0, False)
        out, lse = reference.forward(self.tile(q, k, v, causal, scale), None)
        nothing = torch.tensor(0)
        return out.transpose(0, 1)[None], lse[None, :, :, None], None, None, *[nothing] * 5

    def _scaled_dot_product_cudnn_attention_backward(
        self, dout, q, k, v, out, lse, seed, offset, bias, q_borders, k_borders, q_longest,
        k_longest, dropout, causal, *, scale,
    ):  # fmt: skip
        assert lse.is_contiguous()
        assert lse.shape == (1, q.shape[1], q.shape[2], 1)
        assert (q_longest, k_longest) == (q.shape[2], k.shape[2])
        dout, out = (t[0].transpose(0, 1) for t in (dout, out))
        found = gradients_of(dout, self.tile(q, k, v, causal, scale), out, lse[0, :, :, 0])
        return [gradient.transpose(0, 1)[None] for gradient in found]

    def tile(self, q, k, v, causal, scale):
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
        assert len(k) > 1  # cuDNN refuses a single key
        assert not causal or len(q) == len(k)  # or its causal means another thing
        segments = [(0, len(q), 0, len(k), causal)]
        return Tile(q, k, v, KeyRanges.of_segments(segments, len(q), len(k)), scale)


def stand_in(backend, monkeypatch):
    if backend is flash_attn:
        monkeypatch.setattr(flash_attn, "_package", PackageFlash)
    else:
        monkeypatch.setattr(backend, "aten", TorchsFlash() if backend is flash else CuDNN())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [flash, flash_attn, cudnn])
def test_calls_together_are_the_mask(backend, layout, monkeypatch):
    stand_in(backend, monkeypatch)
    segments, calls = LAYOUTS[layout]
    ranges = KeyRanges.of_segments(segments, QUERIES, KEYS)
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (
        torch.randn(t, h, 8, generator=generator, dtype=torch.float64)
        for t, h in ((QUERIES, 4), (KEYS, 2), (KEYS, 2), (QUERIES, 4))
    )
    tile = Tile(q, k, v, ranges, SCALE)

    found, expected = (attend(module.IMPLEMENTATION, tile, dout) for module in (backend, reference))

    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert len([*packed.calls(ranges)]) == calls


@pytest.mark.parametrize("name", ["flash3", "flash4"])
def test_newer_flash_attention_is_chosen_for_its_own_calls_alone(name, monkeypatch):
    monkeypatch.setattr(flash, "aten", TorchsFlash())
    active = []
    set_active = lambda version: active.append(version)
    attention = SimpleNamespace(
        current_flash_attention_impl=lambda: active[-1] if active else None,
        activate_flash_attention_impl=set_active,
        restore_flash_attention_impl=lambda: set_active(None),
    )
    monkeypatch.setattr(torch.nn, "attention", attention)
    ranges = KeyRanges.of_segments(LAYOUTS["blocks dealt out"][0], QUERIES, KEYS)
    q, k = torch.ones(QUERIES, 4, 8).double(), torch.ones(KEYS, 2, 8).double()
    tile = Tile(q, k, k, ranges, SCALE)

    for backend in (name, "flash", "flash"):
        attend(backends.load(backend), tile, q)

    assert active == [f"FA{name[-1]}", None]


@pytest.mark.parametrize("backend", [flash, cudnn])
def test_torch_knows_its_operations_by_these_arguments(backend):
    """Meta tensors go through torch's own schemas and shapes."""
    q, k, v, dout = (
        torch.empty(t, h, 64, dtype=torch.bfloat16, device="meta")
        for t, h in ((QUERIES, 4), (KEYS, 2), (KEYS, 2), (QUERIES, 4))
    )
    borders = torch.empty(3, dtype=torch.int32, device="meta")
    bounds = (borders, borders, QUERIES, KEYS)
    part = SimpleNamespace(causal=False, bounds=bounds)  # a call of packed kernels, or a piece

    out, lse = backend._attend(q, k, v, part, SCALE)
    gradients = backend._differentiate(dout, q, k, v, out, lse, part, SCALE)

    assert (out.shape, lse.shape) == (q.shape, (4, QUERIES))
    assert [g.shape for g in gradients] == [t.shape for t in (q, k, v)]


@pytest.mark.parametrize("backend", ["flash", "flash_attn", "cudnn"])
def test_what_they_cannot_take_is_refused(backend):
    q, k = torch.zeros(3, 2, 16), torch.zeros(3, 1, 16)
    ranges = KeyRanges.of_segments([(0, 3, 0, 3, 1)], 3, 3)
    with pytest.raises(ValueError, match=f"backend {backend}: runs on GPUs, not on cpu"):
        attention_tile(q, k, k, ranges, scale=SCALE, backend=backend)


@pytest.mark.parametrize(
    ("name", "dtype", "dim", "reason"),
    [
        ("flash", torch.float32, 16, "does not take torch.float32"),
        ("flash", torch.bfloat16, 12, "head dimension 12 is no multiple of 8 up to 256"),
        ("flash_attn", torch.bfloat16, 16, "the package does not import"),
        ("flash3", torch.bfloat16, 16, "flash_attn_interface is not installed"),
        ("flash4", torch.bfloat16, 16, "flash_attn.cute is not installed"),
        ("cudnn", torch.bfloat16, 12, "head dimension 12 is no multiple of 8 up to 128"),
    ],
)
def test_on_gpus_too_they_say_what_is_unsupported(name, dtype, dim, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    monkeypatch.setattr(flash, "find_spec", lambda name: None)
    on_gpu = SimpleNamespace(
        is_cuda=True, dtype=dtype, element_size=lambda: dtype.itemsize, shape=(3, 2, dim)
    )
    tile = SimpleNamespace(q_thd=on_gpu, dropout=None)
    assert reason in backends.load(name).unsupported_reason(tile)
