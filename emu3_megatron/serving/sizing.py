"""How many rows the KV pool has."""

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.estimate import buffer_bytes, pool_bytes, weight_bytes

MOST_ROWS = 32  # unless more are asked for
_SHARE = 0.8  # of the free memory; the vision tokenizer and the allocator need some


def rows_that_fit(
    model: ModelConfig,
    precision: str,
    capacity: int,
    memory: int,
    tensor: int = 1,
    rows: int | None = None,
) -> int:
    """The rows asked for, or as many as fit.

    Args:
        capacity: tokens of a row.
        memory: free bytes, before the weights are there.
        tensor: ranks that share the decoder.

    Raises:
        InputError: they do not fit.
    """
    needed = lambda rows: (
        weight_bytes(model, precision, tensor)
        + pool_bytes(model, precision, rows, capacity, tensor)
        + buffer_bytes(model, precision, rows, capacity, tensor)
    )
    if rows is None:
        fitting = [n for n in range(1, MOST_ROWS + 1) if needed(n) <= _SHARE * memory]
        rows = max(fitting, default=2)
    if needed(rows) > memory:
        raise InputError(
            f"{needed(rows) / 2**30:,.1f} GiB are needed for weights and {rows:,} rows of "
            f"{capacity:,} tokens, and {memory / 2**30:,.1f} GiB are free; give a smaller "
            "--context, or fewer --rows"
        )
    return rows
