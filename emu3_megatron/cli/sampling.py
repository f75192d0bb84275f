"""Options of sampling that several commands share, and opening the checkpoint that is sampled."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    import torch

    from emu3_megatron.generation.limits import Limits
    from emu3_megatron.generation.sampling import SamplingSettings
    from emu3_megatron.model import Decoder
    from emu3_megatron.parallel import Mesh
    from emu3_megatron.vision.tokenizer import VisionTokenizer
    from emu3_megatron.vocabulary import Vocabulary


def parse_grid(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise typer.BadParameter(f"{text}: write HEIGHTxWIDTH, 90x90 say")
    return int(height), int(width)


def parse_top_k(text: str | int) -> int | None:
    """How many tokens are drawn among; None, written none, is all."""
    if str(text).lower() == "none":
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text}: give 1 or more, or none for all tokens")
    return int(text)


class Grid(tuple[int, int]):
    """Rows and columns of codes."""


CheckpointFolder = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="run or checkpoint folder")
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="of the vision tokenizer (default: the recipe's)"),
]
GridOption = Annotated[
    Grid | None,
    typer.Option(
        parser=parse_grid,
        metavar="HEIGHTxWIDTH",
        help="rows and columns of codes, 8 pixels each (default: the recipe's for this caption, "
        "else the commonest in the training data)",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="scale of classifier-free guidance of images and clips; 1 is without (default: the "
        "recipe's sample.guidance, else 3, or 1 where it was never trained without captions)"
    ),
]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token")]
TopK = Annotated[
    int | None,
    typer.Option(
        parser=parse_top_k, metavar="K", help="draw among the K likeliest tokens; none is all"
    ),
]
TopP = Annotated[
    float, typer.Option(help="draw among the likeliest tokens that make up this probability")
]
Seed = Annotated[int, typer.Option(min=0, help="of the first; the next has one more")]
Batch = Annotated[int, typer.Option(min=1, help="generated at once")]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="of a text (default: 512, or what the context leaves)"),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="TOKENS",
        help="longest sequence, prompt included (default: what the model was trained on)",
    ),
]
EightBit = Annotated[
    bool,
    typer.Option(
        "--eight-bit", help="multiply by weights in 8 bits: faster on GPUs, and not the same tokens"
    ),
]
Speculate = Annotated[
    int,
    typer.Option(
        min=1,
        max=16,
        metavar="WINDOW",
        help="tokens of a row that a step reads at most, most of them guesses that are checked; "
        "the same tokens, and faster where many guesses come true; 1 is none",
    ),
]
EstimateOnly = Annotated[
    bool,
    typer.Option("--estimate", help="print tokens, memory and the least time, and make nothing"),
]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, before any weight is read.

    Attributes:
        about: its manifest.
    """

    path: Path
    about: dict[str, Any]
    recipe: DecoderRecipe

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises InputError when there is no checkpoint, or a damaged manifest."""
        from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint

        about = read_checkpoint(find_checkpoint(path))
        return cls(path, about, DecoderRecipe.of(path, about))

    @cached_property
    def vocabulary(self) -> "Vocabulary":
        return self.recipe.model.vocabulary()

    def limits(self, context: int | None) -> "Limits":
        """What the model and this rank's device allow."""
        from emu3_megatron.generation.limits import Limits, free_memory, trained_context

        known = context or trained_context(self.about)
        return Limits(known or 1 << 62, free_memory(self.device))

    @property
    def device(self) -> "torch.device":
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cpu")

    def grid(self, caption: str) -> tuple[int, int]:
        """That on which the recipe draws a caption, else the training data's, else Emu3's."""
        for known in self.recipe.sample.prompts if self.recipe.sample else []:
            if known.caption == caption:
                return known.height, known.width
        height, width = self.about.get("grid") or (90, 90)
        return height, width

    def settings(
        self, guidance: float | None, temperature: float, top_k: int | None, top_p: float, seed: int
    ) -> "SamplingSettings":
        """With the guidance that suits the weights where none is given."""
        from emu3_megatron.generation.sampling import (
            SamplingSettings,
            default_guidance,
            warn_of_guidance,
        )

        if guidance is None:
            guidance = default_guidance(self.about)
        elif os.environ.get("RANK", "0") == "0":
            warn_of_guidance(guidance, self.about)
        return SamplingSettings(guidance, temperature, top_k, top_p, seed)

    def start(self) -> "Mesh":
        """Join the processes that torchrun started, which share the decoder."""
        from emu3_megatron import parallel

        mesh = parallel.start(tensor=tensor_size())
        mesh.seed(0, 0)
        return mesh

    def open(self, mesh: "Mesh") -> "Decoder":
        from emu3_megatron.model.opening import open_decoder

        return open_decoder(self.path, mesh)[0]

    def _own_tokenizer(self) -> Path:
        """The one that the recipe names, else the one that was imported with the decoder."""
        from emu3_megatron.checkpoints.folders import find_checkpoint

        if self.recipe.sample is not None:
            return self.recipe.sample.tokenizer
        run = find_checkpoint(self.path).parent.parent  # whichever of its folders is named
        for imported in (self.path / "tokenizer", run / "tokenizer"):
            if (imported / "config.json").is_file():
                return imported
        raise InputError(f"{self.path}: its recipe names no vision tokenizer; give --tokenizer")

    def tokenizer(self, folder: Path | None) -> "VisionTokenizer":
        """The vision tokenizer, on the CPU but for the first rank, which codes and writes.

        Raises:
            InputError: the recipe names none and none is given, or its codes are not the model's.
        """
        from emu3_megatron.vision.tokenizer import VisionTokenizer

        found = self.tokenizer_folder(folder)
        network = VisionTokenizer.load(found)
        codes = network.network.codebook_size
        if codes != self.recipe.model.codes:
            raise InputError(
                f"{found}: it has {codes:,} codes, the model {self.recipe.model.codes:,}; give the "
                "tokenizer that made the shards, with --tokenizer"
            )
        is_first = os.environ.get("RANK", "0") == "0"
        return network.to(self.device) if is_first else network

    def tokenizer_folder(self, folder: Path | None) -> Path:
        """The one that is given, else the checkpoint's own; raises InputError when it has none."""
        return folder or self._own_tokenizer()


def tensor_size() -> int:
    """How many processes share the decoder."""
    return int(os.environ.get("WORLD_SIZE", 1))
