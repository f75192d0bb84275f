"""Loads a Hugging Face folder as transformers does, and gives its outputs.

transformers reads `config.json` and the weights by itself, so that what our own reading leaves out
shows in the outputs. BAAI's folders name code on the hub, which is never run here: of them
transformers' own classes get the fields of `config.json` as they stand.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.interchange.configs import BAAI_FIELDS, HubConfig
from emu3_megatron.interchange.layouts import ALONE, find_vision
from emu3_megatron.interchange.vision import VisionTable
from emu3_megatron.interchange.weights import Weights


class TransformersModel:
    """What transformers makes of a folder, in fp32: a decoder, a vision tokenizer, or both.

    Raises:
        InputError: transformers does not load it, or finds weights missing or left over.
    """

    def __init__(self, folder: Path, config: HubConfig, weights: Weights):
        load = _baai if config.is_baai else _transformers
        self._model = load(folder, config, weights).float().eval()

    def logits(self, tokens_bs: Tensor) -> Tensor:
        """[b, s, v], of a decoder."""
        return self._model(tokens_bs).logits

    def codes(self, pixels_btchw: Tensor) -> Tensor:
        """Codes of clips, around transformers' own `encode`, which crops by (time, height)."""
        model = getattr(self._model, "model", self._model)
        network = getattr(model, "vqmodel", model)
        latents_bcfhw = network.quant_conv(network.encoder(pixels_btchw).transpose(1, 2))
        return network.quantize(latents_bcfhw.transpose(1, 2))


def _transformers(folder: Path, config: HubConfig, weights: Weights) -> Any:
    import transformers

    kind = {
        "emu3": transformers.Emu3ForConditionalGeneration,
        "emu3_text_model": transformers.Emu3ForCausalLM,
        "emu3_vqgan": transformers.Emu3VQVAE,
    }[config.kind]
    return _load(kind, folder, transformers.AutoConfig.from_pretrained(folder))


def _baai(folder: Path, config: HubConfig, weights: Weights) -> Any:
    import transformers

    values = {k: v for k, v in config.raw().items() if k not in ("model_type", "auto_map")}
    if config.kind == "Emu3":
        return _load(transformers.Emu3ForCausalLM, folder, transformers.Emu3TextConfig(**values))
    renamed = {BAAI_FIELDS.get(name, name): value for name, value in values.items()}
    network = config.vision()
    # BAAI's network has the width of its last level where transformers asks for one.
    width = {"hidden_size": network.level_channels[-1]}
    model = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**(width | renamed)))
    names = find_vision(weights.specs)
    assert names is not None, "the caller found a vision tokenizer"
    source, plain = VisionTable(network, names), VisionTable(network, ALONE.vision)
    model.load_state_dict(
        {
            theirs: weights[name].view(shape)
            for (theirs, shape), name in zip(plain.theirs.items(), source.theirs, strict=True)
        }
    )
    return model


def _load(kind: Any, folder: Path, config: Any) -> Any:
    text = getattr(config, "text_config", config)
    if getattr(text, "num_key_value_heads", 0) is None:  # which transformers 4 reads, 5 does not
        text.num_key_value_heads = text.num_attention_heads
    try:
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds: its checks of fields, of shapes, of files
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{folder}: transformers does not load it ({type(error).__name__}: {said.strip()})"
        ) from None
    for what, names in info.items():
        if names:
            raise InputError(
                f"{folder}: transformers reports {what.replace('_', ' ')}, {_first(names)} "
                "among them; the weights and config.json are not of one model"
            )
    return model


def _first(names: Any) -> str:
    first = sorted(names, key=str)[0]
    return str(first[0] if isinstance(first, tuple) else first)
