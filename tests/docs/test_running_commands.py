"""Every command that README, docs and examples show does what it should, after the demo.

Each runs in a fresh folder with what the demo leaves; trainings are cut to a few steps. EMU3_DEMO
names the demo's folder, where it has run already.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.documented import Source, commands_of, lay_out, sources

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.demo.stages import LATER
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

README = Source("README.md")
SOURCES = sources()

# Commands that are parsed and not run, by a part of them.
NOT_RUN = {
    " serve ": "serves until it is stopped; tests/serving/test_clients.py runs it",
    "make ": "sets up a machine, or runs these tests",
    "8b-h100x64": "needs 64 GPUs",
    "--nproc-per-node 8": "needs eight GPUs",
    "h100x1": "needs a GPU and BAAI's weights",
    "lora-tiny-cpu": "needs DeepSpeed; tests/examples/test_lora_example.py runs it",
    "runs/lora": "needs DeepSpeed; tests/examples/test_lora_example.py runs it",
    "examples/data": "reads Debian packages; tests/prepare/test_example.py runs it",
    "runs/data": "reads Debian packages; tests/prepare/test_example.py runs it",
    "examples/openmoji": "asks the npm registry; tests/examples/test_openmoji_example.py runs it",
    "examples/shapes": "trains for minutes; tests/examples/test_quality_example.py runs it",
    "examples/quality": "trains for minutes; tests/examples/test_quality_example.py runs it",
    "prepare-quality-8b": "needs the tokenizer of the 8B model",
    "runs/shapes": "trains for minutes; tests/examples/test_quality_example.py runs it",
    "prepare all recipe.yaml": "needs a server that writes captions, and a Ray cluster",
    "Emu3-": "needs BAAI's weights",
    "movqgan": "needs SBER's weights",
    "tokenizer-270m": "needs SBER's weights",
    "prepare-dialogues-8b": "needs BAAI's vision tokenizer, and rows with their images",
    "runs/stage2": "needs weights of the 8B model",
    "runs/preferences": "trains for minutes; tests/examples/test_preferences_example.py runs it",
    "benchmarks/digits.py": "trains for minutes; test_digits_example.py trains less",
    "evaluate draw": "needs the suites' prompts; tests/evaluation/test_suites.py draws some",
    "runs/samples": "needs prompts and votes; tests/alignment has them",
    "runs/pairs": "needs prompts and votes; tests/alignment has them",
}
# What is added to a command so that it takes seconds.
ADDED = {
    "emu3 tokenizer train": ["run.steps=8", "codebook.plain_steps=4"],
    "emu3 train": ["run.steps=4", "optimizer.schedule.warmup_steps=1", "run.dir=runs/new"],
    "torchrun": ["run.steps=4", "optimizer.schedule.warmup_steps=1"],
}


def runnable(source: Source) -> list[list[str]]:
    return [words for words in commands_of(source)[0] if not why_not_run(words)]


def why_not_run(words: Sequence[str]) -> str | None:
    command = shlex.join(words)
    return next((reason for part, reason in NOT_RUN.items() if part in command), None)


def id_of(source: Source, words: Sequence[str]) -> str:
    return f"{source.path}: {shlex.join(words)}"


SHOWN = [
    pytest.param(words, id=id_of(source, words))
    for source in SOURCES
    if not source.is_script
    for words in runnable(source)
]
LEFT_OUT = [
    pytest.param(reason, id=id_of(source, words))
    for source in SOURCES
    for words in commands_of(source)[0]
    if (reason := why_not_run(words))
]
SCRIPTS = [source for source in SOURCES if source.is_script and runnable(source)]


def test_every_exception_is_of_use() -> None:
    shown = [shlex.join(words) for source in SOURCES for words in commands_of(source)[0]]
    for part in (*NOT_RUN, *ADDED):
        assert any(part in command for command in shown), f"no document shows {part} any more"


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A working directory after the demo, with its outputs also where the documents have them."""
    lay_out(tmp_path, README)
    later = [name for stage in LATER for name in stage.leaves]  # no document needs them
    shutil.copytree(demo, tmp_path / "demo", ignore=shutil.ignore_patterns(*later))
    (tmp_path / "runs").mkdir()
    same = {
        "data": "demo/data",
        "runs/tokenizer": "demo/tokenizer-run",
        "runs/stage1-tiny": "demo/decoder-run",
    }
    for name, made_as in same.items():
        (tmp_path / name).symlink_to(tmp_path / made_as)
    programs = {"emu3": "-m emu3_megatron", "torchrun": "-m torch.distributed.run", "python": ""}
    (tmp_path / "bin").mkdir()
    for name, module in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def run(folder: Path, words: Sequence[str]) -> None:
    """Run a command to its end, on what is there and into what is not there yet."""
    for flag, value in itertools.pairwise(words):
        if flag in ("--out", "--to") and (folder / value).is_symlink():
            (folder / value).unlink()
    command = shlex.join(words)
    words = [*words, *next((more for part, more in ADDED.items() if command.startswith(part)), [])]
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("words", SHOWN)
def test_commands_run(words: list[str], folder: Path) -> None:
    run(folder, words)


@pytest.mark.slow
@pytest.mark.parametrize("source", SCRIPTS, ids=lambda source: source.path)
def test_scripts_run(source: Source, folder: Path) -> None:
    for words in runnable(source):
        run(folder, words)


@pytest.mark.slow
@pytest.mark.parametrize("reason", LEFT_OUT)
def test_commands_that_cannot_run_here(reason: str) -> None:
    pytest.skip(reason)


@pytest.mark.slow
def test_the_readme_draws_the_trained_picture(folder: Path) -> None:
    (words,) = (words for words in runnable(README) if words[:3] == ["emu3", "generate", "image"])
    run(folder, words)

    tokenizer = VisionTokenizer.load(folder / "demo" / "tokenizer-run" / "tokenizer")
    codes = trained_codes(folder / "demo" / "data", words[4])
    trained = as_written(tokenizer.decode_images(codes))
    drawn = read_png(folder / words[words.index("--out") + 1])

    assert drawn.shape == trained.shape
    error = (drawn - trained).square().mean().item()
    assert 10 * np.log10(4 / max(error, 1e-9)) > 30
    # A picture does not tell its codes, but pictures of the same codes are encoded alike.
    same = tokenizer.encode_images(drawn) == tokenizer.encode_images(trained)
    assert same.float().mean() >= 0.95


def read_png(path: Path) -> torch.Tensor:
    """Pixels [1, 3, height, width] in [-1, 1]."""
    image = np.asarray(Image.open(path).convert("RGB"), np.float32)
    return torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None]


def as_written(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as a PNG of eight bits has them."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def trained_codes(data: Path, caption: str) -> torch.Tensor:
    """The codes, [1, height, width], that the demo's decoder was trained on behind a caption."""
    vocabulary = Vocabulary.tiny()
    for index in sorted((data / "shards").glob("images-*.idx")):
        store = TokenStore(index.with_suffix(""), vocabulary)
        for i in range(len(store)):
            first, second, *_ = parse(vocabulary, store.document(i).tokens)
            if first == caption and isinstance(second, Vision):
                return torch.from_numpy(second.codes)
    raise AssertionError(f"the demo has no photo with the caption {caption!r}")
