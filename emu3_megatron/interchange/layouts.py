"""The layouts of published Emu3 weights, told apart by the names of their tensors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Our tokenizer's parameter names, which are BAAI's, to those of transformers.
_RENAMES = (
    (r"^(encoder)\.(down)\.", r"\1.down_block.\2."),
    (r"^(decoder)\.(up)\.", r"\1.up_block.\2."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.([qkv])\.(weight|bias)$", r".\1_proj.\2"),
    (r"\.proj_out\.", ".out_proj."),
)


@dataclass(frozen=True)
class VisionNames:
    """How a layout names the vision tokenizer's tensors.

    Attributes:
        prefix: before every name.
        renamed: transformers' names instead of BAAI's; its 1x1 convolutions of attention are
            linear layers.
    """

    prefix: str
    renamed: bool

    def of(self, ours: str) -> str:
        """The layout's name of one of our tensors."""
        if self.renamed:
            for pattern, replacement in _RENAMES:
                ours = re.sub(pattern, replacement, ours)
        return self.prefix + ours

    def is_linear(self, ours: str) -> bool:
        """Whether the tensor is a 1x1 convolution here and a matrix there."""
        return self.renamed and re.search(r"\.attn.*\.(q|k|v|proj_out)\.weight$", ours) is not None


@dataclass(frozen=True)
class DecoderNames:
    """How a layout names the decoder's tensors: those of its body, and of its head."""

    body: str
    head: str

    def among(self, names: Iterable[str]) -> list[str]:
        """Those of these tensors that are a decoder's."""
        return [name for name in names if name == self.head or name.startswith(self.body)]


@dataclass(frozen=True)
class Layout:
    decoder: DecoderNames
    vision: VisionNames


LAYOUTS = {
    # BAAI's remote code, each model in its own folder; its decoder's names are also those of
    # transformers' Emu3ForCausalLM.
    "baai": Layout(DecoderNames("model.", "lm_head.weight"), VisionNames("", renamed=False)),
    # transformers 5: Emu3ForConditionalGeneration, both models in one.
    "transformers": Layout(
        DecoderNames("model.text_model.", "lm_head.weight"),
        VisionNames("model.vqmodel.", renamed=True),
    ),
    # Files of transformers 4.48 to 4.51, which lie on the hub.
    "hub": Layout(
        DecoderNames("text_model.model.", "text_model.lm_head.weight"),
        VisionNames("vqmodel.", renamed=True),
    ),
}
# One model alone in a folder of transformers.
ALONE = Layout(LAYOUTS["baai"].decoder, VisionNames("", renamed=True))

_BODIES = [layout.decoder for layout in LAYOUTS.values()]
_VISIONS = [*(layout.vision for layout in LAYOUTS.values()), ALONE.vision]


def find_decoder(names: Iterable[str]) -> DecoderNames | None:
    """The names under which a decoder is among these tensors."""
    present = set(names)
    return next((n for n in _BODIES if f"{n.body}embed_tokens.weight" in present), None)


def find_vision(names: Iterable[str]) -> VisionNames | None:
    """The names under which a vision tokenizer is among these tensors."""
    present = set(names)
    probe = "encoder.down.0.block.0.conv1.weight"
    return next((n for n in _VISIONS if n.of(probe) in present), None)
