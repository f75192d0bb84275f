"""HTML page on a prepared folder: samples, what was set aside and why, histograms."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu3_megatron import pages
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Document, Vision, parse
from emu3_megatron.media.images import to_image
from emu3_megatron.prepare.images import is_understood
from emu3_megatron.prepare.pipeline import manifest_vocabulary
from emu3_megatron.prepare.tables import Row, read_table
from emu3_megatron.prepare.workspace import read_manifest
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import CLASS_NAMES, Vocabulary

_SCORES = ("quality", "colour", "text_area", "flow", "seconds", "watermark", "nsfw")
_READ = 1 << 22  # tokens of a shard whose classes are counted
_TEXT_SHOWN = 300  # characters


def write_page(out: Path, page: Path, tokenizer: VisionTokenizer | None, samples: int) -> None:
    """Write an HTML page on a prepared folder.

    Args:
        tokenizer: decodes images back from their tokens; without it they are not shown.
        samples: of each kind, and of what was set aside.

    Raises:
        InputError: the folder holds no prepared data.
    """
    manifest = read_manifest(out)
    if manifest is None:
        raise InputError(f"{out}: holds no prepared data; name the `out` of a prepare recipe")
    vocabulary = manifest_vocabulary(manifest)
    random = np.random.default_rng(0)  # the same page each time
    blocks = _packs(out, manifest)
    for kind, entry in manifest["kinds"].items():
        stores = [TokenStore(out / "shards" / s["name"], vocabulary) for s in entry["shards"]]
        rows = read_table(out / f"{kind}.parquet")
        of_documents = rows_of_documents(kind, entry, rows)
        scores = _scores_of(entry)
        shown = _samples(stores, of_documents, scores, tokenizer, samples, random)
        blocks += [
            pages.heading(f"{kind}: {entry['kept']:,} of {entry['found']:,} kept"),
            *_selection(entry),
            *_plots(stores, rows, scores, vocabulary),
            pages.heading("Samples", 3),
            pages.side_by_side(list(shown)),
            pages.heading("Set aside", 3),
            pages.table(
                ["why", "items"], [[why, f"{n:,}"] for why, n in entry["set_aside"].items() if n]
            ),
            _set_aside(rows, samples, random),
        ]
    with replacing(page) as beside:
        beside.write_text(pages.page(str(out), blocks), encoding="utf-8")


def _scores_of(entry: dict[str, Any]) -> list[str]:
    """Columns of the table that hold scores: those it was selected by come first."""
    chosen = ["score", *entry["selected"]["columns"]] if "selected" in entry else []
    return [*chosen, *(name for name in _SCORES if name not in chosen)]


def _selection(entry: dict[str, Any]) -> list[pages.Html]:
    """By what the best were chosen, if they were."""
    if "selected" not in entry:
        return []
    about = entry["selected"]
    columns = ", ".join(f"{name} x {weight:g}" for name, weight in about["columns"].items())
    rule = f"the best {about['top']:.2%}" if "top" in about else f"from {about['at_least']:g}"
    least = "" if about["least"] is None else f", the least {about['least']:.4g}"
    return [
        pages.paragraph(
            f"Selected by the mean of {columns}, {rule}: "
            f"{about['selected']:,} of {about['scored']:,} with a score{least}."
        )
    ]


def _packs(out: Path, manifest: dict[str, Any]) -> list[pages.Html]:
    packs = manifest["packs"]
    rows = [
        [
            Path(p["path"]).stem,
            f"{p['context']:,}",
            f"{p['packs']:,}",
            f"{p['documents']:,}",
            f"{p['fill']:.2%}",
        ]
        for p in packs
    ]
    fills = [(Path(p["path"]).stem, _fills(out / p["path"], p["context"])) for p in packs]
    return [
        pages.heading("Packs"),
        pages.table(["name", "context", "packs", "documents", "fill"], rows),
        pages.side_by_side([pages.histogram(f"fill of {name}", f) for name, f in fills]),
    ]


def _fills(packs: Path, context: int) -> np.ndarray:
    """Tokens over context of each pack, 0 to 1."""
    offsets, lengths = (np.load(packs / f"{name}.npy", "r") for name in ("offsets", "lengths"))
    return np.add.reduceat(lengths, offsets[:-1], dtype=np.int64) / context


def _plots(
    stores: Sequence[TokenStore],
    rows: Sequence[Row],
    scores: Sequence[str],
    vocabulary: Vocabulary,
) -> list[pages.Html]:
    lengths = np.concatenate([store.document_lengths for store in stores])
    plots = [pages.histogram("tokens a document", lengths)]
    for score in scores:
        values = [row[score] for row in rows if row.get(score) is not None]
        if values:
            plots.append(pages.histogram(score, values))
    classes = np.sum([_class_counts(store, vocabulary) for store in stores], axis=0)
    shares = zip(CLASS_NAMES, classes / classes.sum(), strict=True)
    return [
        pages.side_by_side(plots),
        pages.table(["class", "share of tokens"], [[name, f"{s:.1%}"] for name, s in shares]),
    ]


def _class_counts(store: TokenStore, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens of each class among the first documents of a shard."""
    counts, seen = np.zeros(len(CLASS_NAMES), np.int64), 0
    for number in range(len(store)):
        tokens = store.read(number)
        counts += np.bincount(vocabulary.token_class(tokens), minlength=len(CLASS_NAMES))
        seen += len(tokens)
        if seen > _READ:
            break
    return counts


def rows_of_documents(kind: str, entry: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The row that each document was made of, in the order of the shards; [] for text."""
    if kind == "text":
        return []
    if kind == "dialogues":
        return [
            {**row, "source": f"{row['source']}: row {row['row']}"} for row in rows if row["kept"]
        ]
    if kind == "features":
        return [row for row in rows if row["kept"]]
    share = entry["settings"].get("understanding", 0.0)
    return [
        row
        for row in rows
        if row["kept"]
        for _ in range(len(row["captions"]) * (1 + is_understood(row["source"], share)))
    ]


def _samples(
    stores: Sequence[TokenStore],
    rows: Sequence[Row],
    scores: Sequence[str],
    tokenizer: VisionTokenizer | None,
    samples: int,
    random: np.random.Generator,
) -> Iterator[pages.Html]:
    every = [(store, i) for store in stores for i in range(len(store))]
    for number in sorted(random.permutation(len(every))[:samples].tolist()):
        store, document = every[number]
        shown = list(_blocks(store.document(document), store.vocabulary, tokenizer))
        about = _scores(rows[number], scores) if rows else []
        yield pages.card(shown, [*about, f"{store.prefix.name}/{document}"])


def _scores(row: Row, scores: Sequence[str]) -> list[str]:
    found = [f"{name} {row[name]:.4g}" for name in scores if row.get(name) is not None]
    return [row["source"], ", ".join(found)]


def _blocks(
    document: Document, vocabulary: Vocabulary, tokenizer: VisionTokenizer | None
) -> Iterator[pages.Html]:
    """Texts and images in order; an arrow stands before what is trained, unless all of it is."""
    marked = not all(span.trained for span in document.spans)
    for span in document.spans:
        for part in parse(vocabulary, span.tokens):
            if isinstance(part, str) and marked and span.trained:
                part = f"→ {part}"
            yield from _part(part, tokenizer)


def _part(part: str | Vision, tokenizer: VisionTokenizer | None) -> list[pages.Html]:
    if isinstance(part, str):
        return [pages.paragraph(part[:_TEXT_SHOWN])]
    meta = pages.paragraph(f"[{part.meta}]")
    if tokenizer is None:
        return [meta]
    codes_fhw = torch.from_numpy(part.codes)
    if part.meta.fps is None:
        pixels_chw = tokenizer.decode_images(codes_fhw)[0]
    else:  # the middle latent frame of the clip
        middle = len(codes_fhw) // 2
        pixels_chw = tokenizer.decode_clips(codes_fhw[middle : middle + 1].unsqueeze(0))[0, 0]
    return [pages.image(to_image(pixels_chw), "JPEG"), meta]


def _set_aside(rows: Sequence[Row], samples: int, random: np.random.Generator) -> pages.Html:
    aside = [row for row in rows if row["reason"]]
    if not aside:
        return pages.paragraph("Nothing.")
    chosen = [aside[i] for i in sorted(random.permutation(len(aside))[:samples].tolist())]
    return pages.table(
        ["source", "why"], [[str(row.get("source", "")), str(row["reason"])] for row in chosen]
    )
