"""The same random weights in our decoder and in transformers' Emu3ForCausalLM."""

import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3_megatron.config import ModelConfig
from emu3_megatron.model import Decoder, build_decoder

# 979 ids, which is not a multiple of 128; two queries share a key.
SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=512, dropout=0.0
)
VOCABULARY = SMALL.vocabulary()


def from_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights, or their gradients, of Emu3ForCausalLM under the names and fusions of Megatron."""
    take = lambda name: tensors[f"model.{name}.weight"]
    ours = {
        "embedding.word_embeddings.weight": _padded(take("embed_tokens")),
        "block.final_layernorm.weight": take("norm"),
        "head.weight": _padded(tensors["lm_head.weight"]),
    }
    for i in range(SMALL.layers):
        layer, theirs = f"block.layers.{i}", f"layers.{i}"
        mlp = [take(f"{theirs}.mlp.{name}_proj") for name in ("gate", "up")]
        ours |= {
            f"{layer}.input_layernorm.weight": take(f"{theirs}.input_layernorm"),
            f"{layer}.self_attention.linear_qkv.weight": _by_query_group(
                *(take(f"{theirs}.self_attn.{name}_proj") for name in "qkv")
            ),
            f"{layer}.self_attention.linear_proj.weight": take(f"{theirs}.self_attn.o_proj"),
            f"{layer}.pre_mlp_layernorm.weight": take(f"{theirs}.post_attention_layernorm"),
            f"{layer}.mlp.linear_fc1.weight": torch.cat(mlp),
            f"{layer}.mlp.linear_fc2.weight": take(f"{theirs}.mlp.down_proj"),
        }
    return ours


def _by_query_group(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Megatron's order of rows: each group's queries, then its key, then its value."""
    grouped = [t.view(SMALL.kv_heads, -1, SMALL.hidden) for t in (query, key, value)]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _padded(rows: torch.Tensor) -> torch.Tensor:
    padding = VOCABULARY.padded_size(1) - len(rows)
    return torch.nn.functional.pad(rows, (0, 0, 0, padding))


def transformers_decoder() -> Emu3ForCausalLM:
    config = Emu3TextConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=SMALL.hidden,
        intermediate_size=SMALL.ffn,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
        pad_token_id=VOCABULARY.pad,
        bos_token_id=VOCABULARY.bos,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = Emu3ForCausalLM(config).eval()
    assert model.config.rope_parameters["rope_theta"] == SMALL.rope_base == 1_000_000
    for name, weight in model.named_parameters():
        # Wide enough that attention is not uniform and that norm weights matter.
        weight.data.normal_(1.0, 0.3) if "norm" in name else weight.data.normal_(0, 0.15)
    return model


def our_decoder(theirs: Emu3ForCausalLM) -> Decoder:
    decoder = build_decoder(SMALL, seed=None).eval()
    decoder.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    return decoder
