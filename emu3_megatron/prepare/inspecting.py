"""A page to look at prepared data with: samples, what was set aside and why, plots."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.media.images import to_image
from emu3_megatron.prepare.images import is_understood
from emu3_megatron.prepare.pipeline import manifest_vocabulary, read_manifest
from emu3_megatron.prepare.tables import Row, read_table
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import CLASS_NAMES, Vocabulary

_STYLE = """body{font:15px system-ui;margin:2em auto;max-width:70em}table{border-collapse:collapse}
td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}.s{display:flex;flex-wrap:wrap;
gap:1em}.s figure{margin:0;width:15em}.s img{max-width:100%}figcaption{font-size:.85em}
figure p{margin:.4em 0;overflow-wrap:anywhere}figcaption{color:#666;overflow-wrap:anywhere}
svg{margin:.5em 1.5em .5em 0}text{font:11px system-ui}"""
_SCORES = ("quality", "colour", "text_area", "flow", "seconds")
_READ = 1 << 22  # tokens of a shard whose classes are counted
_TEXT_SHOWN = 300  # characters


def write_page(
    out: Path, page: Path, tokenizer: VisionTokenizer | None, samples: int, seed: int = 0
) -> None:
    """Write an HTML page on a prepared folder.

    Args:
        tokenizer: decodes images back from their tokens; without it they are not shown.
        samples: of each kind, chosen by `seed`; and of what was set aside.

    Raises:
        InputError: the folder holds no prepared data.
    """
    manifest = read_manifest(out)
    if manifest is None:
        raise InputError(f"{out}: holds no prepared data; name the `out` of a prepare recipe")
    vocabulary = manifest_vocabulary(manifest)
    random = np.random.default_rng(seed)
    body = [f"<h1>{html.escape(str(out))}</h1>", _packs(out, manifest)]
    for kind, entry in manifest["kinds"].items():
        stores = [TokenStore(out / "shards" / s["name"], vocabulary) for s in entry["shards"]]
        rows = read_table(out / f"{kind}.parquet")
        body += [
            f"<h2>{kind}: {entry['kept']:,} of {entry['found']:,} kept</h2>",
            _plots(stores, rows, vocabulary),
            '<h3>Samples</h3><div class="s">',
            *_samples(stores, rows_of_documents(kind, entry, rows), tokenizer, samples, random),
            "</div><h3>Set aside</h3>",
            _table(["why", "items"], [[k, f"{v:,}"] for k, v in entry["set_aside"].items() if v]),
            _set_aside(rows, samples, random),
        ]
    with replacing(page) as beside:
        beside.write_text(
            f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>" + "\n".join(body)
        )


def _packs(out: Path, manifest: dict[str, Any]) -> str:
    rows = [
        [
            Path(p["path"]).stem,
            f"{p['context']:,}",
            f"{p['packs']:,}",
            f"{p['documents']:,}",
            f"{p['fill']:.2%}",
        ]
        for p in manifest["packs"]
    ]
    plots = [
        histogram(f"fill of {Path(p['path']).stem}", _fills(out / p["path"], p["context"]))
        for p in manifest["packs"]
    ]
    table = _table(["name", "context", "packs", "documents", "fill"], rows)
    return f"<h2>Packs</h2>{table}<p>{''.join(plots)}</p>"


def _fills(packs: Path, context: int) -> np.ndarray:
    """Tokens over context of each pack, 0 to 1."""
    offsets, lengths = (np.load(packs / f"{name}.npy", "r") for name in ("offsets", "lengths"))
    return np.add.reduceat(lengths, offsets[:-1], dtype=np.int64) / context


def _plots(stores: Sequence[TokenStore], rows: Sequence[Row], vocabulary: Vocabulary) -> str:
    lengths = np.concatenate([store.document_lengths for store in stores])
    classes = sum(_class_counts(store, vocabulary) for store in stores)
    plots = [histogram("tokens a document", lengths)]
    for score in _SCORES:
        values = [row[score] for row in rows if row.get(score) is not None]
        if values:
            plots.append(histogram(score, np.array(values)))
    shares = np.asarray(classes) / np.sum(classes)
    table = _table(["class", "share of tokens"], [
        [name, f"{share:.1%}"] for name, share in zip(CLASS_NAMES, shares, strict=True)
    ])  # fmt: skip
    return "<p>" + "".join(plots) + "</p>" + table


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


def histogram(title: str, values: np.ndarray, bins: int = 30) -> str:
    """An SVG histogram; the number is that of the highest bar."""
    width, height, top = 270, 90, 16
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins if low < high else 1)
    step, most = width / len(counts), counts.max()
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{top + height - c / most * height:.1f}" '
        f'width="{min(step, 9) - 1:.1f}" height="{c / most * height:.1f}" fill="#47a"/>'
        for i, c in enumerate(counts.tolist())
    )
    below = top + height + 14
    ends = [_label(0, below, "start", f"{low:,.4g}")]
    ends += [_label(width, below, "end", f"{high:,.4g}")] if low < high else []
    peak = _label(min(int(counts.argmax() * step), width - 40), 11, "start", f"{most:,}")
    title = _label(width // 2, below + 14, "middle", title)
    return f'<svg width="{width}" height="{below + 20}">{bars}{peak}{"".join(ends)}{title}</svg>'


def _label(x: int, y: int, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'


def rows_of_documents(kind: str, entry: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The row that each document was made of, in the order of the shards; [] for text."""
    if kind == "text":
        return []
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
    tokenizer: VisionTokenizer | None,
    samples: int,
    random: np.random.Generator,
) -> Iterator[str]:
    every = [(store, i) for store in stores for i in range(len(store))]
    for number in sorted(random.permutation(len(every))[:samples].tolist()):
        store, document = every[number]
        parts = parse(store.vocabulary, store.read(document))
        shown = "".join(_part(part, tokenizer) for part in parts)
        about = _scores(rows[number]) if rows else []
        about.append(f"{store.prefix.name}/{document}")
        caption = "<br>".join(map(html.escape, about))
        yield f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _scores(row: Row) -> list[str]:
    scores = [f"{name} {row[name]:.4g}" for name in _SCORES if row.get(name) is not None]
    return [row["source"], ", ".join(scores)]


def _part(part: str | Vision, tokenizer: VisionTokenizer | None) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part[:_TEXT_SHOWN])}</p>"
    if tokenizer is None:
        return f"<p>[{part.meta}]</p>"
    codes_fhw = torch.from_numpy(part.codes)
    if part.meta.fps is None:
        pixels_chw = tokenizer.decode_images(codes_fhw)[0]
    else:  # the middle latent frame of the clip
        middle = len(codes_fhw) // 2
        pixels_chw = tokenizer.decode_clips(codes_fhw[middle : middle + 1].unsqueeze(0))[0, 0]
    data = io.BytesIO()
    to_image(pixels_chw).save(data, "JPEG")
    image = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{image}"><p>[{part.meta}]</p>'


def _set_aside(rows: Sequence[Row], samples: int, random: np.random.Generator) -> str:
    aside = [row for row in rows if row["reason"]]
    if not aside:
        return "<p>Nothing.</p>"
    chosen = [aside[i] for i in sorted(random.permutation(len(aside))[:samples].tolist())]
    return _table(
        ["source", "why"], [[str(row.get("source", "")), str(row["reason"])] for row in chosen]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"
