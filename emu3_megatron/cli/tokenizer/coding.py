"""`emu3 tokenizer encode` and `decode`: images and clips to folders of codes, and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu3_megatron.cli.tokenizer.options import (
    Area,
    Batch,
    Files,
    Fps,
    IndependentGroups,
    TokenizerFolder,
    at_of,
    find,
)
from emu3_megatron.cli.tokenizer.ranks import Ranks
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.vision.coding import Row

Out = Annotated[
    Path, typer.Option(metavar="FOLDER", help="to write; what is there already stays as it is")
]


def encode(
    tokenizer: TokenizerFolder,
    folder: Files,
    out: Out,
    area: Area = None,
    side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="of the middle square, instead of --area")
    ] = None,
    fps: Fps = 12.0,
    frames: Annotated[
        int | None, typer.Option(min=4, help="of a clip the first ones (default: all)")
    ] = None,
    batch: Batch = 8,
    independent_groups: IndependentGroups = False,
) -> None:
    """Encode images and clips: NAME.npz with the codes of each file, files.jsonl that lists them.

    The same command again encodes what is missing or has changed. What cannot be read is named
    and left out.
    """
    at = at_of(area, side, fps, frames)
    files = find(folder)
    from emu3_megatron.vision.coding import Encoding, encode_files, tokenizer_hash, write_index
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    network = VisionTokenizer.load(tokenizer)
    size = network.network.codebook_size
    encoding = Encoding(tokenizer_hash(tokenizer), size, at, independent_groups)
    ranks = Ranks.start()
    ranks.on_first(lambda: encoding.begin(out))
    own = encode_files(network.to(ranks.device), encoding, folder, ranks.share(files), out, batch)
    rows = _all(ranks, own, len(files))
    if ranks.is_first:
        write_index(out, rows)
        _say(rows, f"codes: {out}")


def decode(
    tokenizer: TokenizerFolder,
    folder: Annotated[
        Path, typer.Argument(metavar="CODES", help="folder that emu3 tokenizer encode wrote")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="to write")],
) -> None:
    """Decode a folder of codes: NAME.png of each image, NAME.mp4 of each clip."""
    from emu3_megatron.vision.coding import Encoding, decode_files, find_codes, tokenizer_hash
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    encoding = Encoding.read(folder)
    if encoding.tokenizer != tokenizer_hash(tokenizer):
        raise InputError(f"{folder}: encoded by another tokenizer than {tokenizer}; name that one")
    files = find_codes(folder)
    network = VisionTokenizer.load(tokenizer)
    ranks = Ranks.start()
    own = decode_files(network.to(ranks.device), encoding, folder, ranks.share(files), out)
    rows = _all(ranks, own, len(files))
    if ranks.is_first:
        _say(rows, f"pictures: {out}")


def _all(ranks: Ranks, own: "Iterable[Row]", total: int) -> "list[Row]":
    """Rows of all processes, once they are done; the first shows how far its own share is."""
    from tqdm import tqdm

    share = len(range(ranks.rank, total, ranks.size))
    shown = tqdm(own, total=share, unit="file", disable=not ranks.is_first)
    return [row for rows in ranks.gather(list(shown)) for row in rows]


def _say(rows: "list[Row]", where: str) -> None:
    failed = [row for row in rows if row.error]
    for row in failed:
        print(f"left out: {row.file}: {row.error}")
    print(f"{len(rows) - len(failed):,} files, {len(failed):,} left out; {where}")
    if len(failed) == len(rows):
        raise InputError("no file could be used; the reasons stand above")
