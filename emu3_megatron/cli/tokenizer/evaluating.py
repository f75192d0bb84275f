"""`emu3 tokenizer evaluate`: what a tokenizer keeps of images and clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu3_megatron.cli.arguments import rate
from emu3_megatron.cli.tokenizer.measuring import Job, Networks
from emu3_megatron.cli.tokenizer.options import (
    Area,
    Batch,
    Files,
    IndependentGroups,
    TokenizerFolder,
    at_of,
    find,
)
from emu3_megatron.cli.tokenizer.ranks import Ranks
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.evaluation.reconstruction import AtSize
    from emu3_megatron.evaluation.reconstruction_page import Pair
    from emu3_megatron.vision.files import At
    from emu3_megatron.vision.lpips import Lpips

_SIDES = {"emu3": (128, 256, 512, 720)}  # of the paper's table 2


def evaluate(
    tokenizer: TokenizerFolder,
    folder: Files,
    area: Area = None,
    side: Annotated[
        list[int] | None,
        typer.Option(metavar="PIXELS", help="of the middle square, once for each size"),
    ] = None,
    protocol: Annotated[
        Literal["emu3"] | None,
        typer.Option(
            metavar="emu3", help="the paper's: squares of 128, 256, 512 and 720, 8 frames at 12 fps"
        ),
    ] = None,
    fps: Annotated[float | None, rate("frames a second of clips (default: 12)")] = None,
    frames: Annotated[
        int | None, typer.Option(min=4, help="of a clip the first ones (default: 8)")
    ] = None,
    independent_groups: IndependentGroups = False,
    batch: Batch = 8,
    baseline_from: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="fit principal components and k-means to its files"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of k-means")] = 0,
    trained_on: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="refuse files that this folder has too"),
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(metavar="FILE", help="torchvision's AlexNet or VGG16 weights")
    ] = None,
    lpips_heads: Annotated[
        Path | None, typer.Option(metavar="FILE", help="heads of the lpips package for them")
    ] = None,
    lpips_sha256: Annotated[
        list[str] | None, typer.Option(metavar="HASH", help="accept such a file for --lpips")
    ] = None,
    fid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="inception-2015-12-05.pt, as TorchScript")
    ] = None,
    fvd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="i3d_torchscript.pt, as TorchScript")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="write evaluation.json, files.jsonl and page.html"),
    ] = None,
) -> None:
    """Encode and decode images and clips, and measure what is left: PSNR, SSIM, use of codes.

    LPIPS, FID and FVD are computed with the weights of their networks, which are files of yours.
    The mean colour of each code's pixels stands beside every figure, and other baselines with
    --baseline-from.
    """
    sizes = sizes_of(area, side, protocol, fps, frames)
    if out and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    files = find(folder)
    _refuse_trained(files, trained_on or [])
    from emu3_megatron.vision.coding import tokenizer_hash
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    distance = _lpips(lpips, lpips_heads, lpips_sha256 or [])
    network = VisionTokenizer.load(tokenizer)
    ranks = Ranks.start()
    job = Job(
        ranks,
        network.to(ranks.device),
        files,
        independent_groups,
        batch,
        distance.to(ranks.device) if distance else None,
        Networks(fid, fvd),
        find(baseline_from) if baseline_from else [],
        seed,
    )
    about = {
        "tokenizer": str(tokenizer),
        "hash": tokenizer_hash(tokenizer),
        "folder": str(folder),
        "protocol": protocol,
    }
    _write(job, job.measure(sizes), about, out)


def sizes_of(
    area: int | None,
    sides: list[int] | None,
    protocol: str | None,
    fps: float | None,
    frames: int | None,
) -> "list[At]":
    """The sizes that an evaluation is asked for. Raises InputError when they contradict."""
    if protocol and any(given is not None for given in (area, sides, fps, frames)):
        raise InputError("--protocol says sizes, --fps and --frames: give it without them")
    chosen = _SIDES[protocol] if protocol else sides or (None,)
    return [at_of(area, side, fps or 12.0, frames or 8) for side in chosen]


def _refuse_trained(files: Sequence[Path], folders: Sequence[Path]) -> None:
    from emu3_megatron.media.overlap import refuse_overlap

    refuse_overlap(files, [path for folder in folders for path in find(folder)])


def _lpips(weights: Path | None, heads: Path | None, accepted: Sequence[str]) -> "Lpips | None":
    if weights is None and heads is None:
        return None
    if weights is None or heads is None:
        raise InputError("LPIPS needs both --lpips, the network's weights, and --lpips-heads")
    from emu3_megatron.vision.lpips import Lpips

    return Lpips.load(weights, heads, accepted)


def _write(
    job: Job, found: "tuple[list[AtSize], list[Pair]]", about: dict[str, Any], out: Path | None
) -> None:
    if not job.ranks.is_first:
        return
    from emu3_megatron.evaluation.reconstruction import conditions, paper_as_json, report

    sizes, pairs = found
    images, clips = (len(sizes[0].measured.of_kind(kind)) for kind in ("image", "clip"))
    said = conditions(sizes[0].at, job.independent_groups, images, clips)
    for failed in sizes[0].measured.failed:
        print(f"left out: {failed.path}: {failed.reason}")
    for kind in _without_baselines(sizes[0]) if job.fitted_to else []:
        print(f"--baseline-from: has no {kind}s; the mean colour alone stands beside {kind}s")
    print("\n".join(report(sizes, job.codes, said)))
    if not out:
        return
    networks = {"LPIPS": f"{job.lpips.name} {job.lpips.hash}" if job.lpips else None}
    networks |= {name: str(path) if path else None for name, path in vars(job.networks).items()}
    values = {
        **about,
        "conditions": said,
        "networks": networks,
        "codes": job.codes,
        "sizes": [size.as_json() for size in sizes],
        "paper": paper_as_json(),
    }
    _write_files(out, values, sizes, job.codes, said, pairs)
    print(f"page: {out / 'page.html'}")


def _without_baselines(size: "AtSize") -> list[str]:
    """Kinds of files that were measured, and that no baseline was fitted to."""
    from emu3_megatron.vision.measures.baselines import MEAN_COLOUR

    fitted = [found for name, found in size.baselines.items() if name != MEAN_COLOUR]
    return [
        kind
        for kind in ("image", "clip")
        if size.measured.of_kind(kind) and not any(found.of_kind(kind) for found in fitted)
    ]


def _write_files(
    out: Path,
    values: dict[str, Any],
    sizes: "list[AtSize]",
    codes: int,
    said: str,
    pairs: "list[Pair]",
) -> None:
    import json
    from dataclasses import asdict

    from emu3_megatron.evaluation.reconstruction_page import page
    from emu3_megatron.files import replacing, write_json

    write_json(out / "evaluation.json", values)
    rows = [
        {"size": str(size.at), **asdict(kept), "path": str(kept.path)}
        for size in sizes
        for kept in size.measured.kept
    ]
    with replacing(out / "files.jsonl") as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    where = f"tokenizer {values['tokenizer']}\nfolder    {values['folder']}"
    with replacing(out / "page.html") as beside:
        beside.write_text(page(where, said, sizes, codes, pairs), encoding="utf-8")
