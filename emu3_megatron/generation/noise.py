"""Gumbel noise keyed by seed, place and token, so that a draw depends on nothing else."""

from collections.abc import Sequence

from torch import Tensor

from emu3_megatron.generation.transfers import to_device

_MASK = (1 << 32) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def noise_key(seed: int, place: int) -> tuple[int, int]:
    """Two words of 32 bits from a seed and a place (SplitMix64, Steele et al., OOPSLA 2014)."""
    words = _split_mix(_split_mix(seed) ^ place)
    return words >> 32, words & _MASK


def _split_mix(state: int) -> int:
    mask = (1 << 64) - 1
    state = (state + _GOLDEN) & mask
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return state ^ state >> 31


def gumbel(keys: Sequence[tuple[int, int]], ids: Tensor) -> Tensor:
    """Standard Gumbel noise of tokens: argmax(logits + noise) is a draw from their softmax.

    Args:
        keys: one of each row, from `noise_key`.
        ids: tokens, int64 [v], the same for all rows, or [b, v].

    Returns:
        float64 [b, v]; the same on every device, to rounding.
    """
    keys_b2 = to_device(keys, ids.device)
    words_bv = _mix(ids * (_GOLDEN & _MASK) + keys_b2[:, :1])
    words_bv = _mix(words_bv.bitwise_xor_(keys_b2[:, 1:]))
    # The middles of 2^32 equal parts of the unit interval: the logarithms are finite.
    uniform_bv = words_bv.double().add_(0.5).mul_(2.0**-32)
    return uniform_bv.log_().neg_().log_().neg_()


def _mix(words: Tensor) -> Tensor:
    """A permutation of words of 32 bits held as int64: lowbias32 by C. Wellons."""
    words = words.bitwise_and_(_MASK)
    words.bitwise_xor_(words >> 16).mul_(0x7FEB352D).bitwise_and_(_MASK)
    words.bitwise_xor_(words >> 15).mul_(0x846CA68B).bitwise_and_(_MASK)
    return words.bitwise_xor_(words >> 16)
