"""`emu3 evaluate draw`: the samples of a public suite, named as its own scorer wants them."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu3_megatron.cli.arguments import rate
from emu3_megatron.cli.sampling import (
    Checkpoint,
    CheckpointFolder,
    Context,
    EstimateOnly,
    GridOption,
    Temperature,
    TokenizerFolder,
    TopK,
    TopP,
)
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.evaluation.suites.drawing import Drawn
    from emu3_megatron.evaluation.suites.place import Place
    from emu3_megatron.evaluation.suites.plan import Plan, Suite, SuiteFile
    from emu3_megatron.grammar import Meta

SuiteName = Annotated[
    Literal["geneval", "t2i-compbench", "dpg-bench", "vbench"],
    typer.Argument(metavar="SUITE", help="geneval, t2i-compbench, dpg-bench or vbench"),
]
Tensor = Annotated[
    int, typer.Option(min=1, help="processes that share a decoder; the others draw other samples")
]


def draw(
    suite: SuiteName,
    checkpoint: CheckpointFolder,
    prompts: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="the suite's own: evaluation_metadata.jsonl; files of examples/dataset, once for "
            "each; the folder dpg_bench/prompts; VBench_full_info.json",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="to write; it goes on where it was")],
    number: Annotated[
        int | None,
        typer.Option("--number", "-n", min=1, help="of each prompt (default: the suite's)"),
    ] = None,
    grid: GridOption = None,
    seconds: Annotated[float, rate("of clips")] = 5.0,
    fps: Annotated[float, rate("frames a second of clips")] = 24.0,
    negative: Annotated[str, typer.Option(help="caption that guidance leads away from")] = "",
    tokenizer: TokenizerFolder = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="scale of classifier-free guidance; 1 is without (default: the paper's for this "
            "suite, 1 where the weights were never trained without captions)"
        ),
    ] = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 16384,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="mixed with suite, prompt and number")] = 0,
    batch: Annotated[
        int | None, typer.Option(min=1, help="drawn at once (default: what fills the memory)")
    ] = None,
    context: Context = None,
    tensor: Tensor = 1,
    estimate: EstimateOnly = False,
) -> None:
    """Draw the samples of a public suite, into a folder that its own scorer takes.

    What is complete stays as it is when the command is given again. The suite's scorer is yours to
    run; emu3 evaluate scores then shows its results beside the paper's.
    """
    from emu3_megatron.evaluation.suites import SUITES
    from emu3_megatron.evaluation.suites.drawing import Drawn

    chosen = SUITES[suite]
    source = Checkpoint.read(checkpoint)
    plan = chosen.plan(prompts, number)
    settings = source.settings(_guidance(chosen, source, guidance), temperature, top_k, top_p, seed)
    drawn = Drawn(_meta(chosen, grid or source.grid(""), seconds, fps), negative, settings)
    job = _Job(chosen, source, plan, drawn, number or chosen.each, tensor)
    at_once = job.check(context, batch, out)
    if not estimate:
        job.draw(out, prompts, tokenizer, at_once)


def _guidance(suite: "Suite", source: Checkpoint, asked: float | None) -> float | None:
    """The paper's where none is asked for, and the weights know empty captions."""
    from emu3_megatron.checkpoints.folders import saw_empty_captions

    if asked is None and saw_empty_captions(source.about) is not False:
        return suite.guidance
    return asked


def _meta(suite: "Suite", grid: tuple[int, int], seconds: float, fps: float) -> "Meta":
    from emu3_megatron.generation.clips import clip_meta
    from emu3_megatron.grammar import Meta

    height, width = grid
    if suite.needs_squares and height != width:
        side = min(grid)
        raise InputError(
            f"--grid {height}x{width}: {suite.title}'s scorer cuts squares; "
            f"give --grid {side}x{side}"
        )
    return clip_meta(height, width, seconds, fps) if suite.is_video else Meta(height, width)


@dataclass(frozen=True)
class _Job:
    """A suite that is to be drawn by a checkpoint.

    Attributes:
        number: samples of a prompt.
        tensor: processes that share a decoder.
    """

    suite: "Suite"
    source: Checkpoint
    plan: "Plan"
    drawn: "Drawn"
    number: int
    tensor: int

    def check(self, context: int | None, batch: int | None, out: Path) -> int:
        """State the cost of what is missing, refuse what does not fit; samples at once."""
        from emu3_megatron.evaluation.suites.drawing import most_at_once, works_of
        from emu3_megatron.evaluation.suites.place import Place

        source, files = self.source, self.plan.files
        limits = source.limits(context)
        samples = sum(len(file.numbers) for file in files)
        limits.check_count(samples, "samples")
        works = [work for (work,) in works_of(source.vocabulary, files, self.drawn, 1)]
        for work in works:
            limits.check_length(work)
        model, precision = source.recipe.model, source.recipe.precision
        longest = max(works, key=lambda work: work.length)
        memory = limits.memory // self._processes_that_share_memory()
        at_once = batch or most_at_once(model, precision, longest, memory, self.tensor)
        missing = Place(out, self.suite).missing(files)
        self._state_cost(missing, min(at_once, samples), memory)
        return min(at_once, samples)

    def _processes_that_share_memory(self) -> int:
        return (
            1 if self.source.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        )

    def _state_cost(self, missing: "Sequence[SuiteFile]", at_once: int, memory: int) -> None:
        from emu3_megatron.evaluation.suites.drawing import works_of
        from emu3_megatron.generation.estimate import estimate, measure_bandwidth
        from emu3_megatron.generation.limits import Limits, describe

        source, is_first = self.source, os.environ.get("RANK", "0") == "0"
        if is_first:
            samples = sum(len(file.numbers) for file in self.plan.files)
            print(
                f"{self.suite.title}: {len(self.plan.files):,} files of {samples:,} samples on "
                f"{self.drawn.meta}, {len(missing):,} to be drawn, {at_once} samples at once, "
                f"guidance {self.drawn.settings.guidance:g}; of each process",
                flush=True,
            )
        processes = int(os.environ.get("WORLD_SIZE", 1))
        share = missing[:: max(1, processes // self.tensor)]
        if not share:
            return
        works = works_of(source.vocabulary, share, self.drawn, at_once)
        needed = estimate(source.recipe.model, source.recipe.precision, works, self.tensor)
        if is_first:
            print("\n".join(describe(needed, measure_bandwidth(source.device), memory)), flush=True)
        Limits(1 << 62, memory).check_memory(needed)

    def draw(
        self, out: Path, prompts: Sequence[Path], tokenizer: Path | None, at_once: int
    ) -> None:
        from emu3_megatron import parallel
        from emu3_megatron.evaluation.suites.drawing import SuiteDrawer
        from emu3_megatron.evaluation.suites.place import Place
        from emu3_megatron.parallel.votes import on_first_rank

        source, place = self.source, Place(out, self.suite)
        network = source.tokenizer(tokenizer)
        mesh = parallel.start(tensor=self.tensor)
        mesh.seed(0, 0)
        seed = self.drawn.settings.seed
        begin = lambda: place.begin(self.plan, seed, self._about(prompts, tokenizer))
        missing = on_first_rank(begin)
        if missing:
            decoder = source.open(mesh)
            if mesh.tensor_rank == 0:
                network = network.to(mesh.device)
            SuiteDrawer(place, decoder, source.vocabulary, network, self.drawn, mesh, at_once).draw(
                missing
            )
        if mesh.is_first:
            place.wait_for(self.plan.files)
            place.end()
            self._say(place)

    def _about(self, prompts: Sequence[Path], tokenizer: Path | None) -> dict[str, Any]:
        from emu3_megatron import manifest
        from emu3_megatron.checkpoints.folders import find_checkpoint
        from emu3_megatron.evaluation.suites.place import digest_of

        found = find_checkpoint(self.source.path)
        weights = self.source.tokenizer_folder(tokenizer) / "model.safetensors"
        return {
            "suite": self.suite.name,
            "number": self.number,
            "checkpoint": str(found),
            "checkpoint_digest": manifest.describe(found / manifest.NAME)["sha256"],
            "tokenizer_digest": manifest.describe(weights)["sha256"],
            "prompts_file": [str(path) for path in prompts],
            "prompts_digest": digest_of(self.plan),
            "grid": str(self.drawn.meta),
            "negative": self.drawn.negative,
            **asdict(self.drawn.settings),
        }

    def _say(self, place: "Place") -> None:
        from emu3_megatron.evaluation.paper import beside_paper

        side = 8 * self.drawn.meta.height
        scorer = self.suite.next.format(folder=place.scored.resolve(), side=side)
        print(f"{place.scored}: {len(self.plan.files):,} files, all there")
        print(f"score them by {self.suite.title}'s own code: {scorer}")
        print("\n".join(beside_paper(self.suite.name)))
