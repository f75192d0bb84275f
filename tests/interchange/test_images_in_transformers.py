"""The snippet of docs/generation.md: an exported folder makes the same greedy image elsewhere."""

from pathlib import Path

import numpy as np
import torch
from support.documented import Source, blocks

from emu3_megatron.generation.images import generate_images
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.vocabulary import Vocabulary

CAPTION = "A tabby cat looks past the camera."


def run_snippet(folder: Path) -> np.ndarray:
    (snippet,) = (
        block
        for block in blocks(Source("docs/generation.md").text, "python")
        if "Emu3ForCausalLM" in block
    )
    for name, ours in (
        ('"exported"', repr(str(folder))),
        ("Vocabulary.tiny()", "Vocabulary.tiny(600)"),
        ("Meta(13, 20)", "Meta(4, 6)"),
    ):
        assert name in snippet
        snippet = snippet.replace(name, ours)
    names: dict[str, np.ndarray] = {}
    exec(snippet, names)
    return names["image"]


def test_an_exported_folder_makes_the_same_greedy_image(mesh, checkpoints, tmp_path):
    checkpoint = checkpoints["baai", torch.float32]
    export_folder(checkpoint, tmp_path / "exported")
    decoder, _ = open_decoder(checkpoint, mesh)
    greedy = SamplingSettings(guidance=1, temperature=0)

    theirs = run_snippet(tmp_path / "exported")

    (ours,) = generate_images(decoder, Vocabulary.tiny(600), [CAPTION], 4, 6, greedy)
    np.testing.assert_array_equal(theirs, ours)
    assert len(np.unique(ours)) > 3
