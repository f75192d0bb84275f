"""Megatron-core's own GPTModel, and its checkpoints as Megatron-LM writes them."""

import enum
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig

from emu3_megatron import parallel
from emu3_megatron.parallel.groups import token_group

ROWS = 1024  # 979 ids of the tiny vocabulary, padded


class Backend(enum.Enum):
    """A class of which Megatron-LM's arguments hold members, and readers know nothing."""

    AUTO = 5


def arguments(tensor: int) -> Namespace:
    """The arguments of a training of Megatron-LM, those among them that describe the model."""
    return Namespace(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=8,
        group_query_attention=True,
        num_query_groups=4,
        kv_channels=8,
        normalization="RMSNorm",
        norm_epsilon=1e-5,
        swiglu=True,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=True,
        position_embedding_type="rope",
        rotary_base=10_000,
        rotary_percent=1.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=0.02,
        max_position_embeddings=321,
        make_vocab_size_divisible_by=128,
        padded_vocab_size=ROWS,
        tensor_model_parallel_size=tensor,
        params_dtype=torch.float32,
        attention_backend=Backend.AUTO,
    )


def build_gpt(tensor: int = 1) -> GPTModel:
    """This rank's part of a GPTModel of those arguments, of weights that differ everywhere."""
    config = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=8,
        num_query_groups=4,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        tensor_model_parallel_size=tensor,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=ROWS,
        max_sequence_length=321,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=10_000,
    )
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # the same on every rank
                steady = torch.Generator().manual_seed(len(name))
                parameter.normal_(1.0, 0.3, generator=steady)
            else:
                parameter.normal_(0, 0.15, generator=generator)
    return model.eval()


def sharded(model: GPTModel, **metadata: bool) -> dict[str, Any]:
    return model.sharded_state_dict(metadata={"dp_cp_group": token_group(), **metadata})


def save_on_ranks(distributed: Path, files: Path, tensor: int) -> None:
    """Save in both formats, on each of so many tensor parallel ranks."""
    parallel.start(tensor=tensor).seed(0, 0)
    save_distributed(distributed, tensor)
    save_files(files, tensor)


def save_distributed(folder: Path, tensor: int = 1, **metadata: bool) -> None:
    """As Megatron-LM's `--ckpt-format torch_dist`; on each rank."""
    iteration = folder / "iter_0000007"
    iteration.mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7", encoding="utf-8")
    common = {"args": arguments(tensor), "checkpoint_version": 3.0, "iteration": 7}
    model = sharded(build_gpt(tensor), **metadata)
    dist_checkpointing.save({**common, "model": model}, str(iteration))


def save_files(folder: Path, tensor: int = 1) -> None:
    """As `--ckpt-format torch`: a file of torch.save for each tensor parallel rank."""
    rank = int(os.environ.get("RANK", 0))
    path = folder / "iter_0000007" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7", encoding="utf-8")
    content = {"args": arguments(tensor), "checkpoint_version": 3.0, "iteration": 7}
    torch.save({**content, "model": build_gpt(tensor).state_dict_for_save_checkpoint()}, path)


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    """A distributed checkpoint, loaded into one GPTModel; every tensor must be there."""
    model = build_gpt()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with torch.serialization.safe_globals([Namespace, Backend]):  # as Megatron-LM names its own
        loaded = dist_checkpointing.load({"model": sharded(model)}, str(folder))
    model.load_state_dict(loaded["model"])
    return dict(model.named_parameters())
