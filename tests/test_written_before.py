"""Files that commit 2303272 wrote are of use to today's code.

`fixtures/written-by-2303272.tar.gz` holds them, and `expected.json` beside them what that commit
read from them; `fixtures/make.py` made both.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDataset
from PIL import Image
from support.running import emu3

from emu3_megatron.vision.tokenizer import VisionTokenizer

ARCHIVE = Path(__file__).parent / "fixtures" / "written-by-2303272.tar.gz"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the old files: data, dialogues, tokenizer and run."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def expected(written: Path) -> dict[str, Any]:
    return json.loads((written / "expected.json").read_text(encoding="utf-8"))


def succeed(cwd: Path, *arguments: str) -> str:
    """What a command says that ends well."""
    ended = emu3(*arguments, cwd=cwd)
    assert ended.code == 0, ended.said
    return ended.said


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_the_fixtures_are_small():
    assert sum(path.stat().st_size for path in ARCHIVE.parent.iterdir()) < 1e6


def test_prepared_data_is_checked(written):
    succeed(written, "check", "data", "--deep")


@pytest.mark.parametrize("what", ["dialogues/dialogues", "dialogues/dialogues.pack"])
def test_a_shard_and_a_pack_are_checked(written, what):
    succeed(written, "check", what)


def test_shards_hold_the_same_spans(written, expected):
    for shard, documents in expected["documents"].items():
        store = IndexedDataset(str(written / shard), multimodal=True)
        found = [
            [(bool(mode == 0), tokens.tolist()) for tokens, mode in map(store.get, range(*ends))]
            for ends in np.lib.stride_tricks.sliding_window_view(store.document_indices, 2)
        ]
        assert found == [[(trained, tokens) for trained, tokens in d] for d in documents], shard


def test_documents_are_parsed_and_decoded(written):
    succeed(written, "inspect", "data", "data", "--tokenizer", "tokenizer")

    page = (written / "data.html").read_text(encoding="utf-8")
    for text in (
        "A red square.",
        "A green square moves to the right.",
        "Another one, with ünïcode",
    ):
        assert text in page


def test_the_tokenizer_decodes_the_same_pixels(written, expected):
    tokenizer = VisionTokenizer.load(written / "tokenizer")

    pixels = tokenizer.decode_images(torch.tensor(expected["drawn"]["codes"]))

    given = torch.tensor(expected["drawn"]["pixels"])
    torch.testing.assert_close(pixels[:, :, ::5, ::5], given, rtol=0, atol=1e-4)


def test_the_decoder_draws_the_same_codes(written, expected):
    drawn = expected["drawn"]
    tokenizer = VisionTokenizer.load(written / "tokenizer")
    pixels = tokenizer.decode_images(torch.tensor(drawn["codes"]))
    greedy = ["--guidance", "1", "--temperature", "0"]

    for caption, given_chw in zip(drawn["captions"], pixels, strict=True):
        prompt = ["run", caption, "--grid", "3x4"]
        succeed(written, "generate", "image", *prompt, *greedy, "--out", "drawn.png")

        image = np.asarray(Image.open(written / "drawn.png").convert("RGB"), np.float32)
        given = (given_chw.permute(1, 2, 0).numpy().clip(-1, 1) + 1) * 127.5
        assert np.abs(image - given).max() <= 1  # one other code would change far more


def test_transformers_computes_the_same_logits(written, expected):
    from transformers import Emu3ForCausalLM

    succeed(written, "convert", "export", "--from", "run", "--to", "hf")

    model = Emu3ForCausalLM.from_pretrained(written / "hf", dtype=torch.float32).eval()
    logits = expected["logits"]
    with torch.no_grad():
        found_sv = model(torch.tensor([logits["tokens"]])).logits[0]
    given = torch.tensor(logits["values"])
    torch.testing.assert_close(found_sv[:, logits["ids"]], given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["run", "tokenizer"])
def test_an_export_is_verified(written, model):
    succeed(written, "convert", "export", "--from", model, "--to", "hf")

    said = succeed(written, "convert", "verify", "--hf", "hf", "--checkpoint", model)

    assert "100.00% of image codes" in said or float(said.split("difference ")[1].split()[0]) < 1e-5


def test_a_new_run_starts_from_the_weights(written, expected):
    succeed(written, "train", "again.yaml", "data.null_prompt=0")

    assert losses(written / "run-again") == pytest.approx(expected["losses"], rel=1e-5)


def test_the_run_itself_goes_on_or_says_how(written):
    """Its state may have another format by now: then one line says to start from its weights."""
    before = losses(written / "run")
    one_process = ["parallel.tensor=1", "parallel.sequence=false"]
    recipe = written / "train.yaml"
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values["optimizer"]["schedule"] = {"warmup_steps": values["optimizer"].pop("warmup_steps")}
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")

    ended = emu3("train", "train.yaml", "run.steps=8", *one_process, "--accept", cwd=written)

    if ended.code == 0:
        assert len(losses(written / "run")) == len(before) + 2
    else:
        assert ended.code == 2, ended.said
        (line,) = [line for line in ended.said.splitlines() if line.startswith("emu3: ")]
        assert "run.init_from" in line
        assert "Traceback" not in ended.said


def test_what_a_step_of_that_run_read_is_refused_in_one_line(written):
    ended = emu3("inspect", "batch", "run", "--step", "1", cwd=written)

    assert ended.code == 2
    assert ended.said.strip().splitlines()[-1].startswith("emu3: run: a run of an earlier version")
