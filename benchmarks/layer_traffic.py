"""Bytes that a decoder layer moves and keeps outside its matrix products and attention.

Counted on the meta device, at the shape of a stage 1 micro-batch: no GPU, nothing is computed. An
operation of torch reads its inputs and writes its outputs once, and so does a kernel of ours;
matrix products, views and the inside of attention are left out. `kept` is what autograd holds
between forward and backward, weights aside. All bytes are per token and hidden unit.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # so that kernels take tensors that lie on no GPU

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from emu3_kernels import layer_elementwise
from emu3_kernels.layer_elementwise.backends import choose
from harness import write_rows
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig, Recompute, recomputed_parts
from emu3_megatron.model import backends
from emu3_megatron.model.attention import DocumentAttention
from emu3_megatron.model.norm import RMSNorm
from emu3_megatron.model.transformer_config import transformer_config

TOKENS = 5_120
PRODUCTS = {"mm", "bmm", "addmm", "matmul", "linear"}
NOTHING_MOVES = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view"}


class Traffic(TorchDispatchMode):
    """Counts bytes and launches."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.launches, self.paused = 0, 0, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not (function.is_view or self.paused or name in PRODUCTS | NOTHING_MOVES):
            read, written = _tensors((args, kwargs)), _tensors(out)
            self.add([min(_held(t), t.numel() * t.element_size()) for t in (*read, *written)])
        return out

    def add(self, sizes: list[int]) -> None:
        self.bytes += sum(sizes)
        self.launches += 1

    def launch(self, executor: Any, *args: Any, **kwargs: Any) -> None:
        """In the place of a kernel: every tensor that it takes is read or written once."""
        self.add(list({t.untyped_storage()._cdata: _held(t) for t in _tensors(args)}.values()))


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _held(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class Core(torch.nn.Module):
    """Attention of which nothing is counted but what it keeps: its inputs and its output."""

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic, self.forwards = traffic, 0

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_, **__):
        self.forwards += 1
        return Inside.apply(query.contiguous(), key.contiguous(), value.contiguous(), self.traffic)


class Inside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, traffic: Traffic) -> torch.Tensor:
        traffic.paused = True
        out = torch.empty_like(query).flatten(2)
        traffic.paused = False
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor):
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def layer_of(name: str, recompute: Recompute = "none") -> torch.nn.Module:
    """A layer of Emu3-8B on the meta device: "megatron-core", "torch" or "triton"."""
    model = ModelConfig(preset="emu3-8b", dropout=0.1)
    with torch.device("meta"):
        config = transformer_config(model, bf16=True, on_ambient_device=True)
        if name == "megatron-core":
            columns = ColumnParallelLinear, RowParallelLinear
            submodules = backends._submodules(*columns, RMSNorm, DocumentAttention)
            submodules.self_attn_bda = submodules.mlp_bda = get_bias_dropout_add
            spec = ModuleSpec(TransformerLayer, submodules=submodules)
        else:
            block = backends.block_spec(1, BackendConfig(), recomputed_parts(recompute))
            (spec,) = block.layer_specs
        return build_module(spec, config=config, layer_number=1).train()


@contextmanager
def computing(name: str, traffic: Traffic) -> Iterator[None]:
    """Kernels are counted and not run, and layers take Triton's or torch's."""
    chosen = "triton" if name == "triton" else "reference"
    always = lambda backend, given: choose(chosen, given)
    with (
        mock.patch.object(GridExecutor, "__call__", lambda *a, **k: traffic.launch(*a, **k)),
        mock.patch.object(layer_elementwise, "choose", always),
        traffic,
    ):
        yield


def count(name: str, recompute: Recompute = "none") -> dict[str, Any]:
    """Bytes moved and kept by one layer, and how often it attends."""
    traffic, kept = Traffic(), {}
    layer = layer_of(name, recompute)
    core = layer.self_attention.core_attention = Core(traffic)
    weights = {weight.untyped_storage()._cdata for weight in layer.parameters()}
    hidden = torch.empty(TOKENS, 1, 4096, dtype=torch.bfloat16, device="meta").requires_grad_()
    shape = (TOKENS, 1, 1, 128)
    angles = torch.empty(*shape if name == "megatron-core" else (2, *shape), device="meta")
    rotary = angles if name == "megatron-core" else angles.to(torch.bfloat16)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with computing(name, traffic):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out, _ = layer(
                hidden, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=None
            )
        held = sum(storage.nbytes() for storage in kept.values())
        moved = Counter(forward=traffic.bytes, forward_launches=traffic.launches)
        out.backward(torch.empty_like(out))
    units = TOKENS * 4096
    return {
        "forward": moved["forward"] / units,
        "backward": (traffic.bytes - moved["forward"]) / units,
        "moved": traffic.bytes / units,
        "kept": held / units,
        "launches": traffic.launches,
        "attention_forwards": core.forwards,
    }


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    parallel.start()
    for name in ("megatron-core", "torch", "triton"):
        yield {"case": "none", "implementation": name, **count(name)}
    for recompute in ("selective", ["attention"]):
        case = recompute if isinstance(recompute, str) else ", ".join(recompute)
        yield {"case": case, "implementation": "triton", **count("triton", recompute)}


if __name__ == "__main__":
    write_rows(rows)
