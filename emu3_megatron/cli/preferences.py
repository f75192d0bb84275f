"""`emu3 preferences`: samples of a checkpoint, votes on them, and pairs for DPO."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import new_group
from emu3_megatron.cli.sampling import (
    Batch,
    Checkpoint,
    CheckpointFolder,
    GridOption,
    Guidance,
    Seed,
    Temperature,
    TokenizerFolder,
    TopK,
    TopP,
)

group = new_group(
    help="Samples of a checkpoint, votes on them, pairs for DPO.\n\n"
    "`sample` draws several images, clips or answers a prompt; `vote` serves a page on which "
    "people pick the best and the worst, `import` takes votes of other tools; `build` writes pairs."
)

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="what emu3 preferences sample wrote")
]


@group.command()
def sample(
    checkpoint: CheckpointFolder,
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help="a .txt file with a prompt a line, or a .jsonl file: prompt, kind (image, clip, "
            "text or chat), negative, seed, height, width, frames, fps, seconds",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder of samples to write")],
    samples: Annotated[int, typer.Option(min=2, help="samples a prompt")] = 8,
    tokenizer: TokenizerFolder = None,
    grid: GridOption = None,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch: Batch = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 512,
) -> None:
    """Several images, clips or answers a prompt, as tokens and as files to look at.

    The same command goes on after an interruption. Several processes share the decoder:
    torchrun --nproc-per-node N -m emu3_megatron preferences sample ...
    """
    source = Checkpoint.read(checkpoint)
    from emu3_megatron.alignment.sampling import Sampler, jobs_of, origin
    from emu3_megatron.checkpoints.folders import find_checkpoint
    from emu3_megatron.generation.files.prompts import Defaults, read_prompts

    settings = source.settings(guidance, temperature, top_k, top_p, seed)
    wanted = read_prompts(prompts, Defaults(lambda text: grid or source.grid(text)))
    network = source.tokenizer(tokenizer) if any(prompt.meta for prompt in wanted) else None
    mesh = source.start()
    sampler = Sampler(source.open(mesh), source.vocabulary, network, settings, max_tokens)
    described = {**origin(find_checkpoint(checkpoint), prompts, wanted), "each": samples}
    drawn = sampler.draw(out, jobs_of(wanted, samples, seed), batch, described)
    if mesh.is_first:
        number = f"{samples} samples for each of {len(wanted):,} prompts"
        print(
            f"{out}: {number}, guidance {settings.guidance:g}"
            if drawn
            else f"{out}: holds {number}"
        )


@group.command()
def vote(
    folder: Folder,
    voter: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="who votes; given several times, a page for each"),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="of this machine; 0 takes a free one")
    ] = 8765,
) -> None:
    """Serve a page on which people pick the best and the worst sample of each prompt.

    Only browsers on this machine reach it; from another one, ssh -L 8765:127.0.0.1:8765. Votes go
    into FOLDER/votes-NAME.jsonl at once, and a voter goes on where they stopped.
    """
    from emu3_megatron.alignment.samples import Samples
    from emu3_megatron.alignment.voting.server import VotingServer

    with VotingServer(Samples(folder), voter, port) as server:
        for name, session in server.sessions.items():
            state = session.state()
            done = f"{state['done']:,} of {state['total']:,} prompts done"
            print(f"{name}: {server.address(name)} ({done})", flush=True)
        print("Ctrl-C ends it; every vote is stored", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@group.command("import")
def import_(
    folder: Folder,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="an export of Label Studio or Argilla (.json), or a table of scores (.csv, "
            ".jsonl, .parquet) with a column `sample`",
        ),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="of a table: a column of scores, higher is better; may be given several times",
        ),
    ] = None,
) -> None:
    """Take in votes or scores that another tool collected.

    They go into FOLDER/imported-FILE.jsonl; importing a newer file of the same name replaces them.
    Samples are named by ids such as 12-3: sample 3 of prompt 12, both counted from 0.
    """
    from emu3_megatron.alignment.imports.importing import import_votes

    for voter, prompts in import_votes(folder, file, column or ()).items():
        print(f"{voter}: {prompts:,} prompts")


@group.command()
def build(
    folder: Folder,
    out: Annotated[
        Path, typer.Option(metavar="PREFIX", help="shard to write, by path without suffix")
    ],
    margin: Annotated[
        float,
        typer.Option(
            help="least difference between the mean scores of best and worst; a prompt with less "
            "gives no pair. A voter's best scores 1, the worst -1"
        ),
    ] = 1.0,
    held_out: Annotated[
        float,
        typer.Option(metavar="SHARE", help="of the prompts, into a second shard for validation"),
    ] = 0.0,
) -> None:
    """Of each prompt the best sample against the worst: a shard of pairs, for emu3 pack.

    The tokens are those that were drawn. PREFIX.pairs.jsonl says where each pair comes from.
    """
    from emu3_megatron.alignment import pairs

    report = pairs.build(folder, out, margin, held_out)
    print(f"{out}: {len(report.pairs):,} pairs")
    if report.held_out:
        print(f"{out}{pairs.HELD_OUT}: {len(report.held_out):,} pairs")
    for reason, number in report.dropped.items():
        print(f"no pair: {number:,} prompts {reason}")
    print("votes: " + ", ".join(f"{name} {number:,}" for name, number in report.voters.items()))
    if report.agreement is not None:
        print(
            f"voters agree in {report.agreement:.0%} of {report.comparisons:,} comparisons of two "
            "samples that two of them made"
        )
