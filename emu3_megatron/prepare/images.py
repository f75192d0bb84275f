"""Data pipeline of photos: scores, decisions, captions, codes."""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig
from emu3_megatron.grammar import Document, captioned_image, understanding
from emu3_megatron.media.files import (
    IMAGE_SUFFIXES,
    READER_VERSION,
    File,
    Folder,
    Found,
    UnreadableError,
    name_of,
    path_of,
    refuse_none,
    search,
)
from emu3_megatron.media.images import DecodedImage, decode_image, resize_to_area
from emu3_megatron.prepare.captions.captioning import ask_for_captions, captions_of_files
from emu3_megatron.prepare.captions.endpoint import as_sent
from emu3_megatron.prepare.captions.files import caption_suffixes
from emu3_megatron.prepare.captions.filtering import filter_captions
from emu3_megatron.prepare.codes import Coder
from emu3_megatron.prepare.groups import first_kept, group_numbers, held_out
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.parts import Part, Skipped
from emu3_megatron.prepare.scores.classifiers import (
    Classifiers,
    classifier_fault,
    classifier_settings,
)
from emu3_megatron.prepare.scores.colour import colourfulness
from emu3_megatron.prepare.scores.duplicates import (
    NO_PAIRS,
    SIGNED,
    content_hash,
    near_pairs,
    reduced,
    signature,
    signatures,
)
from emu3_megatron.prepare.scores.ocr import TextArea
from emu3_megatron.prepare.scores.quality import quality_of
from emu3_megatron.prepare.tables import Row, read_tables, write_table
from emu3_megatron.prepare.workspace import (
    Workspace,
    chunks,
    digest,
    folder_of,
    stable_chunks,
    state_or_missing,
)
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class ScoreTask:
    """Files of the source folder, and the table to write of them."""

    out: Path
    sources: list[str]

    @property
    def size(self) -> int:
        return len(self.sources)


class ScoreImages:
    """Writes the scores of photos. What cannot be read gets a row that says why."""

    def __init__(self, config: ImagesConfig, device: str):
        self._config = config
        self._quality_by, self._quality = quality_of(config.quality, device)
        self._text_area = TextArea()
        self._classifiers = Classifiers(config, device)

    def __call__(self, task: ScoreTask) -> None:
        write_table(task.out, "images scores", [self.score(source) for source in task.sources])

    def score(self, source: str) -> Row:
        """The row of one photo, by its path inside the source folder."""
        row: Row = {"source": source}
        scores = attempt(source, partial(self._read, path_of(folder_of(self._config), source), row))
        return {**row, **({"error": scores.reason} if isinstance(scores, Failed) else scores)}

    def _read(self, path: File, row: Row) -> Row:
        data = path.read_bytes()
        row["content"] = content_hash([data])  # known of what cannot be decoded too
        return self._scores(decode_image(data, str(path)))

    def _scores(self, decoded: DecodedImage) -> Row:
        image, small = decoded.image, reduced(decoded.image)
        has_ocr = self._config.ocr and _shape_fault(*image.size, self._config) is None
        return {
            "width": image.width,
            "height": image.height,
            "notes": ", ".join(decoded.notes),
            "quality": self._quality([image])[0],
            "quality_by": self._quality_by,
            "colour": colourfulness(small),
            "text_area": self._text_area(np.asarray(image)) if has_ocr else None,
            **self._classifiers([image]),
            "near": signature(small),
        }


def score_images(workspace: Workspace, config: ImagesConfig) -> list[Row]:
    """Rows of all photos of the source folder, in the order of their paths."""
    files = find_sources(workspace, "images", config, IMAGE_SUFFIXES)
    sources = [name_of(path, folder_of(config)) for path in files]
    # Without OCR no score depends on the limits of the shape.
    fields = {"quality", "ocr", *(("min_side", "max_aspect") if config.ocr else ())}
    classifiers = classifier_settings(config)
    settings = {
        **config.model_dump(mode="json", include=fields),
        **classifiers,
        "reader": READER_VERSION,
    }
    folder = workspace.work("images", "scores")
    tasks = [
        ScoreTask(folder / f"{digest(SIGNED, settings, _states(config, some))}.parquet", some)
        for some in stable_chunks(sources, workspace.recipe.run.task_items)
    ]
    make = partial(ScoreImages, config, workspace.recipe.run.device)
    by_weights = config.quality.clip is not None or bool(classifiers)
    workspace.run(make, tasks, "images: scores/photo", on_device=by_weights)
    return read_tables(task.out for task in tasks)


def find_sources(
    workspace: Workspace,
    kind: str,
    config: ImagesConfig | ClipsConfig,
    suffixes: Collection[str],
) -> list[File]:
    """The files of a source folder. Captions and tables of the user's are not left out by it."""
    found: Found[Any] = search(folder_of(config), suffixes)
    refuse_none(found, folder_of(config), suffixes)
    tables = [config.captions.manifest, config.select.table if config.select else None]
    captions = [path.with_suffix(s) for path in found.paths for s in caption_suffixes(path)]
    return list(workspace.found(kind, found, [*tables, *captions]).paths)


def _states(config: ImagesConfig, sources: Sequence[str]) -> list[tuple[str, int, int | str]]:
    return [state_or_missing(folder_of(config), source) for source in sources]


def decide_images(rows: Sequence[Row], config: ImagesConfig, holdout: float | None = None) -> None:
    """Fill `kept` and `reason`, `category: details`, from the scores; the first that holds.

    Args:
        holdout: share of groups of near duplicates that are `held_out`.
    """
    for row in rows:
        row["reason"] = f"unreadable: {row['error']}" if row["error"] else _fault(row, config)
    read = [row for row in rows if not row["error"]]
    read.sort(key=lambda row: (-row["width"] * row["height"], row["source"]))
    pairs = _near_pairs(read, config, holdout is not None)
    _drop_duplicates(read)
    if config.near_duplicate_bits >= 0:
        _drop_near_duplicates(read, pairs)
    hold_out(read, group_numbers(len(read), pairs), holdout)
    for row in rows:
        row["kept"] = row["reason"] is None


def _near_pairs(rows: Sequence[Row], config: ImagesConfig, is_split: bool) -> np.ndarray:
    """Pairs of rows that look alike; their signatures are not kept."""
    looks = signatures([row.pop("near") for row in rows])
    if config.near_duplicate_bits < 0 and not is_split:
        return NO_PAIRS
    return near_pairs(looks, config.near_duplicate_bits if config.near_duplicate_bits >= 0 else 4)


def hold_out(rows: Sequence[Row], groups: np.ndarray, share: float | None) -> None:
    """Fill `held_out`, of whole groups."""
    if share is None:
        return
    contents = np.array([int(row["content"][:16], 16) for row in rows], np.uint64)
    for row, is_held in zip(rows, held_out(contents, groups, share).tolist(), strict=True):
        row["held_out"] = is_held


def _shape_fault(width: int, height: int, config: ImagesConfig) -> str | None:
    short, long = sorted((width, height))
    if short < config.min_side:
        return f"too small: {width}x{height}"
    if long > config.max_aspect * short:
        return f"too narrow: {width}x{height}"
    return None


def _fault(row: Row, config: ImagesConfig) -> str | None:
    fault = _shape_fault(row["width"], row["height"], config) or classifier_fault(row, config)
    if fault:
        return fault
    if row["quality"] >= config.min_quality:
        return None
    poor = f"low quality: {row['quality']:.2f}"
    if row["text_area"] is None:
        return f"{poor}, text unknown"
    if row["colour"] < config.rescue_colour:
        return f"{poor}, monochrome ({row['colour']:.1f})"
    if row["text_area"] > config.rescue_text:
        return f"{poor}, text on {row['text_area']:.0%}"
    return None


def _drop_duplicates(rows: Sequence[Row]) -> None:
    """Of equal files the first stays."""
    first_of: dict[str, str] = {}
    for row in rows:
        if row["reason"] is None:
            original = first_of.setdefault(row["content"], row["source"])
            if original != row["source"]:
                row["reason"] = f"duplicate: of {original}"


def _drop_near_duplicates(rows: Sequence[Row], pairs: np.ndarray) -> None:
    """Of pictures that look alike the first stays, of those that the other rules keep."""
    usable = np.array([row["reason"] is None for row in rows], bool)
    pairs = pairs[usable[pairs].all(1)]
    for row, first in zip(rows, first_kept(len(rows), pairs), strict=True):
        if first is not None:
            row["reason"] = f"near duplicate: of {rows[first]['source']}"


def caption_images(workspace: Workspace, config: ImagesConfig, rows: Sequence[Row]) -> None:
    """Fill `captions` of what is kept; what stays without one is set aside."""
    captions_of_files(rows, config.captions, folder_of(config))
    filter_captions(workspace, "images", rows, config.captions)
    if endpoint := config.captions.endpoint:
        read = partial(_read_pictures, folder_of(config), endpoint.side)
        ask_for_captions(workspace, "images", rows, endpoint, read)
        filter_captions(workspace, "images", rows, config.captions)


def _read_pictures(folder: Folder, side: int, row: Row) -> list[bytes]:
    file = path_of(folder, row["source"])
    return [as_sent(decode_image(file.read_bytes(), str(file)).image, side)]


@dataclass(frozen=True)
class EncodeTask:
    """Rows that become a part."""

    out: Path
    rows: list[Row]

    @property
    def size(self) -> int:
        return len(self.rows)


class EncodeImages:
    """Encodes photos with captions as documents."""

    def __init__(self, config: ImagesConfig, tokenizer: Path, vocabulary: Vocabulary, device: str):
        self._config, self._vocabulary = config, vocabulary
        self._coder = Coder(tokenizer, vocabulary, device)

    def __call__(self, task: EncodeTask) -> None:
        read = [(row, attempt(item_name(row), partial(self._image, row))) for row in task.rows]
        codes = iter(self._coder.images([i for _, i in read if not isinstance(i, Failed)]))
        documents: list[Document] = []
        skipped: list[Skipped] = []
        for row, image in read:
            found = image if isinstance(image, Failed) else self._attempt(row, next(codes))
            if isinstance(found, Failed):
                skipped.append((item_name(row), found.reason))
            else:
                documents += found
        inputs = inputs_of(task.rows, ("content", "captions"), skipped)
        Part.of(documents, inputs, tuple(skipped)).write(task.out)

    def _image(self, row: Row) -> Image.Image:
        path = str(file := path_of(folder_of(self._config), row["source"]))
        data = file.read_bytes()
        if content_hash([data]) != row["content"]:
            raise UnreadableError(path, "changed while it was prepared; run the command again")
        return resize_to_area(decode_image(data, path).image, self._config.area)

    def _attempt(self, row: Row, codes_hw: np.ndarray) -> list[Document] | Failed:
        return attempt(item_name(row), partial(self._documents, row, codes_hw), timed=False)

    def _documents(self, row: Row, codes_hw: np.ndarray) -> list[Document]:
        """One for each caption, and of some photos also the other way round."""
        documents = [captioned_image(self._vocabulary, text, codes_hw) for text in row["captions"]]
        if is_understood(row["source"], self._config.understanding):
            documents += [understanding(self._vocabulary, codes_hw, t) for t in row["captions"]]
        return documents


def is_understood(source: str, share: float) -> bool:
    """Is this photo one of the share that is also written with the caption behind it?"""
    return zlib.crc32(Path(source).name.encode()) < share * 2**32


def item_name(row: Row) -> str:
    """Of a photo its path, of a clip also where it begins."""
    first = row.get("start_frame")
    return str(row["source"]) if first is None else f"{row['source']}: frame {first}"


def inputs_of(rows: Sequence[Row], columns: Sequence[str], skipped: Sequence[Skipped]) -> str:
    """Hash of what a part was made of."""
    without = {name for name, _ in skipped}
    return digest([[r[column] for column in columns] for r in rows if item_name(r) not in without])


def encode_tasks(
    workspace: Workspace, kind: str, rows: Sequence[Row], settings: str, items: int
) -> list[EncodeTask]:
    """Tasks over the rows that are kept, in order."""
    kept = [row for row in rows if row["kept"]]
    folder = workspace.work(kind, "parts")
    columns = ("content", "captions", "source", "start_frame", "end_frame")
    return [
        EncodeTask(
            folder / f"{digest(settings, [[row.get(c) for c in columns] for row in some])}.npz",
            some,
        )
        for some in chunks(kept, items)
    ]
