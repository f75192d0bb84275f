"""Tokens, bytes and the least time are known before anything is generated."""

import pytest
import torch
from emu3_kernels.weight_only import QuantizedWeight

from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.clips import clip_meta
from emu3_megatron.generation.estimate import (
    Work,
    eight_bit_bytes,
    estimate,
    measure_bandwidth,
    pool_bytes,
    step_bytes,
    token_bytes,
    weight_bytes,
)
from emu3_megatron.generation.options import EngineOptions
from emu3_megatron.generation.pool import SPARE, KVPool
from emu3_megatron.generation.weights import DecodeWeights
from emu3_megatron.grammar import Meta
from emu3_megatron.model import build_decoder

EMU3 = ModelConfig(preset="emu3-8b")
TINY = ModelConfig(preset="emu3-tiny")


def test_weights_are_those_of_the_decoder(mesh):
    decoder = build_decoder(TINY)

    assert weight_bytes(TINY, "fp32") == sum(4 * p.numel() for p in decoder.parameters())


def test_a_copy_in_8_bits_comes_on_top_and_steps_read_less(mesh):
    layers = DecodeWeights.of(build_decoder(TINY)).in_eight_bits().layers
    parts = [part for layer in layers for part in vars(layer).values()]
    work, options = Work.of_vision(20, Meta(9, 9)), EngineOptions(eight_bit=True)

    full = estimate(TINY, "fp32", [[work]])
    ours = estimate(TINY, "fp32", [[work]], options=options)

    copied = sum(part.nbytes for part in parts if isinstance(part, QuantizedWeight))
    assert eight_bit_bytes(TINY) == copied == ours.weights - full.weights
    assert ours.read < 0.4 * full.read


def test_two_ranks_hold_half_of_the_layers_each():
    whole, half = (weight_bytes(EMU3, "bf16", tensor) for tensor in (1, 2))

    assert 0.5 < half / whole < 0.501  # norms are on both


def test_emu3_has_8_5_billion_weights_and_128_kib_of_keys_and_values_a_token():
    padding = 2 * 2 * 4096 * (EMU3.vocabulary().padded_size(1) - 184_622)

    assert weight_bytes(EMU3, "bf16") - padding == 2 * 8_492_011_520
    assert token_bytes(EMU3, "bf16") == 128 * 1024
    assert pool_bytes(EMU3, "bf16", rows=2, capacity=8192 - SPARE, tensor=2) == 2**30


def test_the_pool_is_what_the_engine_allocates(mesh):
    pool = KVPool(DecodeWeights.of(build_decoder(TINY)), rows=3, capacity=50)

    allocated = sum(layer.numel() * layer.element_size() for layer in pool.layers)
    assert pool_bytes(TINY, "fp32", 3, 50) == allocated


def test_an_image_draws_codes_alone_and_guidance_takes_a_second_row():
    work = Work.of_vision(20, Meta(90, 90), guided=True)

    assert (work.tokens, work.drawn, work.rows) == (90 * 91 + 2, 8100, 2)
    assert work.length == 20 + 8192


def test_frames_that_are_given_are_not_drawn():
    meta = clip_meta(2, 3, seconds=4, fps=8)

    work = Work.of_vision(50, meta, given=6)

    assert meta.frames == 8
    assert (work.tokens, work.drawn) == (2 * (2 * 4 + 1) + 1, 2 * 2 * 3)


def test_five_seconds_at_64x64_fit_the_context_of_stage_2():
    meta = clip_meta(64, 64)

    assert str(meta) == "64*64*30 24fps 5s"
    assert meta.num_tokens == 124_830


def test_the_pool_holds_the_largest_batch_and_its_longest_row():
    small, large = Work.of_vision(10, Meta(2, 2)), Work.of_vision(10, Meta(4, 4), guided=True)

    needed = estimate(TINY, "fp32", [[small, small, small], [large, large], [small]])

    assert (needed.rows, needed.capacity) == (4, large.length)
    assert needed.pool == pool_bytes(TINY, "fp32", 4, large.length)
    assert needed.bytes == needed.weights + needed.pool + needed.buffers
    assert needed.drawn == 4 * 4 + 2 * 16


def test_a_step_reads_each_weight_once_and_what_the_rows_hold():
    nothing_held = step_bytes(EMU3, "bf16", 0)

    # Without the embedding and with the head's rows of codes alone.
    assert nothing_held / 1e9 == pytest.approx(13.96 + 0.27, abs=0.01)
    assert step_bytes(EMU3, "bf16", 100) - nothing_held == 100 * 128 * 1024


def test_images_at_once_share_the_reading_of_weights():
    work = Work.of_vision(20, Meta(90, 90), guided=True)
    read = lambda batches: estimate(EMU3, "bf16", batches).read

    # docs/generation.md: 41.4 s for one image at 3 TB/s, 7.7 s each for eight.
    assert read([[work]]) / 3e12 == pytest.approx(41.4, rel=0.01)
    assert read([[work] * 8]) / 8 / 3e12 == pytest.approx(7.7, rel=0.01)


def test_the_bandwidth_of_this_machine_is_measured():
    assert 1e8 < measure_bandwidth(torch.device("cpu")) < 1e13
