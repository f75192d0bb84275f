"""`emu3 evaluate scores` and `fid`: numbers, beside those of the paper."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.evaluate.drawing import SuiteName
from emu3_megatron.errors import InputError


def scores(
    suite: SuiteName,
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...",
            show_default=False,
            help="what the suite's scorer wrote: results.jsonl of GenEval; the folders of the "
            "categories of T2I-CompBench; …_results.txt of DPG-Bench; "
            "…_eval_results.json of VBench",
        ),
    ] = None,
) -> None:
    """Show what a suite's own scorer found beside the paper's numbers, with their conditions.

    Without results it shows the paper's alone. emu3 runs no suite's scorer.
    """
    from emu3_megatron.evaluation.paper import Row, beside_paper
    from emu3_megatron.evaluation.suites.scores import read_scores

    ours = [Row("ours", read_scores(suite, results))] if results else []
    print("\n".join(beside_paper(suite, ours)))


def fid(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="folder of images")],
    drawn: Annotated[Path, typer.Argument(metavar="DRAWN", help="folder of images")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="the Inception network as TorchScript, inception-2015-12-05.pt of "
            "NVlabs/stylegan2-ada-pytorch; nothing is downloaded",
        ),
    ] = None,
) -> None:
    """Fréchet inception distance of two folders of images."""
    if weights is None:
        raise InputError(
            "FID needs the weights of its Inception network: --weights inception-2015-12-05.pt"
        )
    import torch

    from emu3_megatron.evaluation.fid import count_images, frechet_distance
    from emu3_megatron.evaluation.paper import Row, beside_paper

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distance = frechet_distance(real, drawn, weights, device)
    counts = f"{count_images(drawn):,} images against {count_images(real):,}"
    print(f"FID {distance:.4g}: {counts}; it falls as there are more, so compare equal counts")
    print("\n".join(beside_paper("fid", [Row("ours", {"FID": distance})])))
