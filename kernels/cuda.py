"""The kernels of csrc/ on torch tensors; `make csrc` builds the library that this file loads.

All of them run on the current stream of their tensors' device, allocate nothing and do not
synchronize. Two runs on the same inputs are bit-equal.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "lib" / "libemu3_kernels.so"
MAX_COLUMNS = 458_752  # of `cross_entropy_rows`: what 16 thread blocks hold of a row, csrc/plan.cuh

# The arguments of each function of csrc/api.h: pointer, size, float, int; the stream comes last.
TYPES = {"p": ctypes.c_void_p, "s": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
SIGNATURES = {
    "emu3_cross_entropy_rows": "psppfpppssp",
    "emu3_cross_entropy_statistics": "psppppssp",
    "emu3_cross_entropy_gradient": "pspppfssp",
    "emu3_merge_attention": "ppsppisssp",
    "emu3_accumulate": "ppisp",
    "emu3_permute_tokens": "pppsssp",
}


def available() -> bool:
    """Whether the library is built and the current CUDA device can run it (capability 9.x)."""
    return torch.cuda.is_available() and _runs_on(torch.cuda.current_device())


@cache
def _runs_on(device: int) -> bool:
    """Asked once a device: every call of a kernel needs the answer, and must not read the disk."""
    return LIBRARY.exists() and torch.cuda.get_device_capability(device)[0] == 9


def cross_entropy_rows(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    max_n: torch.Tensor,
    lse_n: torch.Tensor,
    target_n: torch.Tensor,
    *,
    z_loss: float = 0.0,
) -> None:
    """Cross-entropy of whole rows, which are read once: bf16 gradients take the logits' place.

    The gradient is that of sum(weight x (lse - target + z_loss x lse^2)), as
    `cross_entropy_gradient` gives it. A cluster of thread blocks holds a row in shared memory.

    Args:
        logits_nv: fp16 [n, v], v at most `MAX_COLUMNS`. Rows start at multiples of 16 bytes, so a
            row may be longer in memory; what lies past v does not count and stays as it is.
        labels_n: int64 [n], columns; a label outside [0, v) has target 0 and no one-hot.
        weights_n: fp32 [n].
        max_n: fp32 [n], written: the largest logit.
        lse_n: fp32 [n], written: log of the sum of exponentials.
        target_n: fp32 [n], written: the label's logit.
        z_loss: weight of lse^2.
    """
    _check_rows(logits_nv, labels_n, weights_n, max_n, lse_n, target_n)
    if logits_nv.shape[1] > MAX_COLUMNS:
        raise ValueError(f"{logits_nv.shape[1]} columns: a cluster holds {MAX_COLUMNS} at most")
    _call(
        "emu3_cross_entropy_rows",
        logits_nv,
        logits_nv.stride(0),
        labels_n,
        weights_n,
        z_loss,
        max_n,
        lse_n,
        target_n,
        *logits_nv.shape,
    )


def cross_entropy_statistics(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    max_n: torch.Tensor,
    sumexp_n: torch.Tensor,
    target_n: torch.Tensor,
) -> None:
    """What ranks that share a vocabulary tell each other about their columns, in one read.

    Args:
        logits_nv: fp16 [n, v], as in `cross_entropy_rows` but of any v; it is not written.
        labels_n: int64 [n], counted from the first column here.
        max_n: fp32 [n], written: the largest logit here, -inf where v is 0.
        sumexp_n: fp32 [n], written: the sum of exp(logit - max) over the columns here.
        target_n: fp32 [n], written: the label's logit, 0 where the label lies elsewhere.
    """
    _check_rows(logits_nv, labels_n, max_n, sumexp_n, target_n)
    _call(
        "emu3_cross_entropy_statistics",
        logits_nv,
        logits_nv.stride(0),
        labels_n,
        max_n,
        sumexp_n,
        target_n,
        *logits_nv.shape,
    )


def cross_entropy_gradient(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    lse_n: torch.Tensor,
    *,
    z_loss: float = 0.0,
) -> None:
    """The second pass: weight x ((1 + 2 z_loss lse) softmax - onehot), bf16 in the logits' place.

    Args:
        logits_nv: fp16 [n, v], as in `cross_entropy_statistics`; written.
        labels_n: int64 [n], counted from the first column here.
        weights_n: fp32 [n].
        lse_n: fp32 [n], log of the sum of exponentials over all ranks' columns.
        z_loss: weight of lse^2.
    """
    _check_rows(logits_nv, labels_n, weights_n, lse_n)
    _call(
        "emu3_cross_entropy_gradient",
        logits_nv,
        logits_nv.stride(0),
        labels_n,
        weights_n,
        lse_n,
        z_loss,
        *logits_nv.shape,
    )


def merge_attention(
    out_thd: torch.Tensor, lse_ht: torch.Tensor, new_out_thd: torch.Tensor, new_lse_ht: torch.Tensor
) -> None:
    """Merge attention over further keys into a running result, in place.

    A query that saw no key has lse -inf, and its out counts for nothing.

    Args:
        out_thd: fp32 [t, h, d], d a multiple of 4; written.
        lse_ht: fp32 [h, t], log of the sum of exponentials of the scores; written. Some queries of
            a longer one, too: a head's lie side by side, heads at any distance.
        new_out_thd: bf16 or fp32 [t, h, d].
        new_lse_ht: fp32 [h, t].
    """
    tokens, heads, dim = out_thd.shape
    _check("out_thd", out_thd, (tokens, heads, dim), torch.float32)
    if lse_ht.shape != (heads, tokens) or lse_ht.dtype != torch.float32 or lse_ht.stride(1) != 1:
        raise ValueError(
            f"lse_ht is {lse_ht.dtype} {list(lse_ht.shape)}, strides {lse_ht.stride()}; needed: "
            f"torch.float32 {[heads, tokens]}, a head's tokens side by side"
        )
    _check("new_out_thd", new_out_thd, (tokens, heads, dim), torch.float32, torch.bfloat16)
    _check("new_lse_ht", new_lse_ht, (heads, tokens), torch.float32)
    if dim % 4:
        raise ValueError(f"heads of {dim} dimensions: a multiple of 4 is needed")
    _check_aligned(out_thd=out_thd, new_out_thd=new_out_thd)
    half = new_out_thd.dtype == torch.bfloat16
    _call(
        "emu3_merge_attention",
        out_thd,
        lse_ht,
        lse_ht.stride(0),
        new_out_thd,
        new_lse_ht,
        half,
        tokens,
        heads,
        dim,
    )


def accumulate(accumulator: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add a gradient, bf16 or fp32, into an fp32 accumulator of its shape, in place."""
    _check("accumulator", accumulator, tuple(gradient.shape), torch.float32)
    _check("gradient", gradient, tuple(gradient.shape), torch.float32, torch.bfloat16)
    _check_aligned(accumulator=accumulator, gradient=gradient)
    half = gradient.dtype == torch.bfloat16
    _call("emu3_accumulate", accumulator, gradient, half, gradient.numel())


def permute_tokens(source: torch.Tensor, index_t: torch.Tensor, destination: torch.Tensor) -> None:
    """Gather rows: destination[i] = source[index_t[i]].

    Args:
        source: [s, ...], any dtype; a row takes a multiple of 2 bytes.
        index_t: int64 [t], each in [0, s): one outside stops the device, as torch's gathers do.
        destination: [t, ...], written. It must not overlap the source.
    """
    shape = (index_t.shape[0], *source.shape[1:])
    _check("source", source, tuple(source.shape), source.dtype)
    _check("index_t", index_t, shape[:1], torch.int64)
    _check("destination", destination, shape, source.dtype)
    row_bytes = source[:1].numel() * source.element_size()
    if row_bytes % 2:
        raise ValueError(f"rows of {row_bytes} bytes: an even number is needed")
    _call("emu3_permute_tokens", source, index_t, destination, source.shape[0], shape[0], row_bytes)


def _check_rows(logits_nv: torch.Tensor, labels_n: torch.Tensor, *per_row: torch.Tensor) -> None:
    rows, columns = logits_nv.shape
    if logits_nv.dtype != torch.float16:
        raise ValueError(f"logits are {logits_nv.dtype}; torch.float16 is needed")
    _check("labels_n", labels_n, (rows,), torch.int64)
    for tensor in per_row:
        _check("an fp32 tensor of the rows", tensor, (rows,), torch.float32)
    if not logits_nv.numel():
        return
    stride = logits_nv.stride(0) if rows > 1 else columns
    starts = logits_nv.data_ptr() % 16 == 0 and (rows == 1 or stride % 8 == 0)
    if logits_nv.stride(1) != 1 or not starts or stride < columns:
        raise ValueError("rows of logits must start at multiples of 16 bytes, columns side by side")
    # Columns are read eight at a time, so the last row's padding must exist.
    end = logits_nv.storage_offset() + (rows - 1) * stride + (columns + 7) // 8 * 8
    if end * 2 > logits_nv.untyped_storage().nbytes():
        raise ValueError(f"{columns} logits a row need memory for the next multiple of 8")


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype not in dtypes or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, strides {tensor.stride()}; needed: "
            f"contiguous {' or '.join(map(str, dtypes))} {list(shape)}"
        )


def _check_aligned(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.data_ptr() % 16:
            raise ValueError(f"{name} must start at a multiple of 16 bytes")


def _call(name: str, *arguments: torch.Tensor | float) -> None:
    """Launch on the tensors' device; RuntimeError when CUDA refuses."""
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    device = tensors[0].device
    if device.type != "cuda" or any(tensor.device != device for tensor in tensors):
        raise ValueError(f"{name}: all tensors must be on one CUDA device")
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        error = getattr(_library(), name)(*values, stream)
    if error:
        raise RuntimeError(f"{name}: {_library().emu3_error(error).decode()}")


@cache
def _library() -> ctypes.CDLL:
    return bind(LIBRARY)


def bind(path: Path) -> ctypes.CDLL:
    """Load a library of csrc/ and declare its functions."""
    library = ctypes.CDLL(str(path))
    for name, letters in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [TYPES[letter] for letter in letters]
        function.restype = ctypes.c_int
    library.emu3_error.argtypes = [ctypes.c_int]
    library.emu3_error.restype = ctypes.c_char_p
    return library
