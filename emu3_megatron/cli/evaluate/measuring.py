"""`emu3 evaluate scores`, `reconstruction` and `fid`: numbers, beside those of the paper."""

import json
from dataclasses import asdict
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
    from emu3_megatron.evaluation.paper import beside_paper
    from emu3_megatron.evaluation.suites.scores import read_scores

    print("\n".join(beside_paper(suite, read_scores(suite, results) if results else None)))


def reconstruction(
    tokenizer: Annotated[
        Path, typer.Argument(metavar="TOKENIZER", help="folder of the vision tokenizer")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="of images and clips")],
    area: Annotated[
        int, typer.Option(min=1024, metavar="PIXELS", help="of an image or a frame, about")
    ] = 512 * 512,
    fps: Annotated[float, typer.Option(min=0.01, help="frames a second of clips")] = 12.0,
    frames: Annotated[int, typer.Option(min=4, help="of a clip, the first ones")] = 8,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="write a line for each file")
    ] = None,
) -> None:
    """Encode and decode images and clips, and compare: PSNR and SSIM, means over files."""
    import torch

    from emu3_megatron.evaluation.paper import beside_paper
    from emu3_megatron.files import replacing
    from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
    from emu3_megatron.vision.files import At
    from emu3_megatron.vision.measures.reconstruction import codec_of, means, measure
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = VisionTokenizer.load(tokenizer).to(device)
    files = find_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    kept = measure(codec_of(network), files, At(area, fps, frames)).kept
    if out:
        with replacing(out) as beside:
            lines = [json.dumps({**asdict(k), "path": str(k.path)}) for k in kept]
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    ours = means(kept)
    print(
        f"{len(kept):,} files at about {area:,} pixels: PSNR {ours['PSNR']:.2f} dB, "
        f"SSIM {ours['SSIM']:.3f}"
    )
    print("\n".join(beside_paper("reconstruction", ours)))


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
    from emu3_megatron.evaluation.paper import beside_paper

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distance = frechet_distance(real, drawn, weights, device)
    counts = f"{count_images(drawn):,} images against {count_images(real):,}"
    print(f"FID {distance:.4g}: {counts}; it falls as there are more, so compare equal counts")
    print("\n".join(beside_paper("fid", {"FID": distance})))
