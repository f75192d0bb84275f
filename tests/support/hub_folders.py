"""Folders of tiny random Emu3 models, in the three layouts, made without our own code."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAEConfig,
)

from emu3_megatron.config import ModelConfig

# 1,067 ids: tensor parallel sizes 1, 2 and 4 pad them to different numbers of rows.
MODEL = ModelConfig(
    layers=2, hidden=64, heads=8, kv_heads=4, ffn=96, text="bytes", codes=600, dropout=0.0
)
VOCABULARY = MODEL.vocabulary()
IDS = {
    "pad_token_id": VOCABULARY.pad,
    "bos_token_id": VOCABULARY.bos,
    "eos_token_id": VOCABULARY.eos,
}
TEXT = {
    "vocab_size": VOCABULARY.size,
    "hidden_size": MODEL.hidden,
    "intermediate_size": MODEL.ffn,
    "num_hidden_layers": MODEL.layers,
    "num_attention_heads": MODEL.heads,
    "num_key_value_heads": MODEL.kv_heads,
    "hidden_act": "silu",
    "max_position_embeddings": 321,
    "rms_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    **IDS,
}
VISION = {
    "codebook_size": 600,
    "embed_dim": 4,
    "num_res_blocks": 1,
    "attn_resolutions": [3],
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2],
    "latent_channels": 4,
}
# From transformers' names to BAAI's, as in their converter's table read backwards.
TO_BAAI = (
    (r"down_block\.", ""),
    (r"up_block\.", ""),
    (r"middle_block\.", "mid."),
    (r"attn_norms\.(\d)\.", r"attn.\1.norm."),
    (r"attn_norm\.", "attn_1.norm."),
    (r"([qkv])_proj\.", r"\1."),
    (r"out_proj\.", "proj_out."),
)


def make_model(dtype: torch.dtype) -> Emu3ForConditionalGeneration:
    """Weights wide enough that attention is not uniform, that norms matter, that codes differ."""
    names = [f"<|visual token {code:06d}|>" for code in range(600)]
    codes = {name: VOCABULARY.first_code + code for code, name in enumerate(names)}
    config = Emu3Config(
        text_config=Emu3TextConfig(**TEXT),
        vq_config=Emu3VQVAEConfig(**VISION, hidden_size=64),
        vocabulary_map={
            "<image>": VOCABULARY.image_placeholder,
            "<|extra_200|>": VOCABULARY.end_of_line,
            **codes,
        },
        **IDS,
    )
    generator = torch.Generator().manual_seed(0)
    model = Emu3ForConditionalGeneration(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif "norm" in name and tensor.ndim == 1 and tensor.is_floating_point():
            tensor.normal_(1.0, 0.3, generator=generator)
        elif "text_model" in name or "lm_head" in name:
            tensor.normal_(0, 0.15, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, 1.5 * tensor[0].numel() ** -0.5, generator=generator)
    return model.to(dtype)


def write_transformers(model: Emu3ForConditionalGeneration, folder: Path) -> None:
    # By default transformers writes the names of older files.
    model.save_pretrained(folder, max_shard_size="400KB", save_original_format=False)
    assert (folder / "model.safetensors.index.json").is_file()


def write_hub(model: Emu3ForConditionalGeneration, folder: Path) -> None:
    rename = lambda name: (
        name.replace("model.text_model.", "text_model.model.")
        .replace("lm_head.", "text_model.lm_head.")
        .replace("model.vqmodel.", "vqmodel.")
    )
    tensors = {rename(name): tensor for name, tensor in model.state_dict().items()}
    # transformers 4 leaves out what its classes have by default.
    usual = {
        "hidden_act",
        "rms_norm_eps",
        "initializer_range",
        "embed_dim",
        "attn_resolutions",
        "latent_channels",
    }
    text, vision = ({k: v for k, v in of.items() if k not in usual} for of in (TEXT, VISION))
    config = {
        "model_type": "emu3",
        "text_config": {**text, "model_type": "emu3_text_model"},
        "vq_config": {**vision, "model_type": "emu3_vqgan", "hidden_size": 64},
        "vocabulary_map": model.config.vocabulary_map,
    }
    write(folder, tensors, config)


def write_baai_decoder(model: Emu3ForConditionalGeneration, folder: Path) -> None:
    tensors = {
        name.replace("model.text_model.", "model."): tensor
        for name, tensor in model.state_dict().items()
        if "vqmodel" not in name
    }
    write(folder, tensors, {**TEXT, "model_type": "Emu3", "rope_theta": 1e6, "rope_scaling": None})


def write_baai_vision(model: Emu3ForConditionalGeneration, folder: Path) -> None:
    tensors = {}
    for name, tensor in model.model.vqmodel.state_dict().items():
        if re.search(r"_proj\.weight$", name):
            tensor = tensor[:, :, None, None]  # a 1x1 convolution
        for pattern, replacement in TO_BAAI:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    config = {
        "model_type": "Emu3VisionVQ",
        "ch": VISION["base_channels"],
        "ch_mult": VISION["channel_multiplier"],
        "z_channels": VISION["latent_channels"],
        **{n: VISION[n] for n in ("codebook_size", "embed_dim", "num_res_blocks")},
        "attn_resolutions": VISION["attn_resolutions"],
    }
    write(folder, tensors, config)


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict) -> None:
    folder.mkdir(parents=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


WRITERS = {
    "transformers": write_transformers,
    "hub": write_hub,
    "baai": write_baai_decoder,
    "baai-vision": write_baai_vision,
}
