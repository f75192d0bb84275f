"""Low-rank adapters by peft: into a decoder, out of it, and into its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from emu3_megatron.config.engines import LoraConfig
from emu3_megatron.files import replacing
from emu3_megatron.model.initialization import generator_of

if TYPE_CHECKING:
    import peft

_A, _B = ".lora_A.weight", ".lora_B.weight"


def add_adapters(decoder: torch.nn.Module, section: LoraConfig) -> None:
    """Put an adapter beside each matrix that the section names; all else is frozen."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_peft_config(section), decoder)


def drawn_adapters(
    shapes: Mapping[str, torch.Size], seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Initial adapters, which change nothing: A uniform as peft draws it, B zero."""
    found = {}
    for name, shape in shapes.items():
        found[name] = torch.zeros(shape, device=device)
        if name.endswith(_A):
            bound = shape[1] ** -0.5
            generator = generator_of(f"{seed}/{name}", device)
            found[name].uniform_(-bound, bound, generator=generator)
    return found


def plain_name(name: str) -> str:
    """The name of a parameter without what peft adds: its layer's own, or of an adapter."""
    return name.replace(".base_layer.", ".").replace(".default.", ".")


def is_adapter(name: str) -> bool:
    """Whether a plain name is an adapter's."""
    return name.endswith((_A, _B))


def adapters_of(name: str) -> tuple[str, str]:
    """The names of the two adapters that a matrix may have."""
    stem = name.removesuffix(".weight")
    return stem + _A, stem + _B


def merged(weight: Tensor, a: Tensor, b: Tensor, section: LoraConfig) -> Tensor:
    """A matrix with its adapter added, computed in fp32."""
    added = section.alpha / section.rank * (b.float() @ a.float())
    return (weight.float() + added).to(weight.dtype)


def write_adapters(folder: Path, adapters: Mapping[str, Tensor], section: LoraConfig) -> None:
    """Write a folder that `PeftModel.from_pretrained(Emu3ForCausalLM, folder)` loads."""
    tensors = {f"base_model.model.{name}": value for name, value in adapters.items()}
    with replacing(folder) as beside:
        beside.mkdir()
        _peft_config(section).save_pretrained(str(beside))
        data = save(tensors, metadata={"format": "pt"})
        (beside / "adapter_model.safetensors").write_bytes(data)


def _peft_config(section: LoraConfig) -> "peft.LoraConfig":
    import peft

    return peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=list(section.targets),
        task_type="CAUSAL_LM",
    )
