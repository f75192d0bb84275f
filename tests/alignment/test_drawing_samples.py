"""Samples of prompts: stored as they were drawn, and the same after an interruption."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.sampling import Sampler, batches_of, jobs_of
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.generation.files.prompts import Prompt
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, captioned_clip, captioned_image, parse
from emu3_megatron.model import build_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
SETTINGS = SamplingSettings(guidance=2, seed=100)
CAT = Prompt("a cat", "image", meta=Meta(2, 3))
WAVES = Prompt("waves", "clip", meta=Meta(2, 2, 2, 8, 1))
QUESTION = Prompt("what is a cat", "text", chat=True)
PROMPTS = [CAT, WAVES, Prompt("once", "text"), QUESTION]
ORIGIN = {"checkpoint": "runs/quality", "checkpoint_digest": "abc", "prompts_digest": "def"}


@pytest.fixture(scope="module")
def tokenizer():
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    return VisionTokenizer(network).eval()


@pytest.fixture(scope="module")
def sampler(mesh, tokenizer):
    decoder = build_decoder(SMALL).eval()
    return Sampler(decoder, VOCABULARY, tokenizer, SETTINGS, max_tokens=12)


def run(sampler, folder, prompts=PROMPTS, each=3, batch=2, **origin):
    jobs = jobs_of(prompts, each, sampler.settings.seed)
    return sampler.draw(folder, jobs, batch, {**ORIGIN, **origin})


@pytest.fixture(scope="module")
def folder(sampler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "samples"
    assert run(sampler, folder)
    return folder


def test_the_records_name_every_sample_and_its_seed(folder):
    lines = [
        json.loads(line)
        for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]

    assert [(line["prompt"], line["sample"]) for line in lines] == [
        (prompt, sample) for prompt in range(4) for sample in range(3)
    ]
    assert [line["seed"] for line in lines] == list(range(100, 112))
    assert lines[3] == {"prompt": 1, "sample": 0, "text": "waves", "kind": "clip", "seed": 103}


def test_the_manifest_says_how_they_were_drawn(folder):
    about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))

    expected = {"format": "emu3-megatron/samples/1", "prompts": 4, "samples": 12, "guidance": 2}
    expected |= {**ORIGIN, "temperature": 1.0, "top_k": 2048, "top_p": 1.0, "seed": 100}
    assert about.items() >= expected.items()
    assert about["vocabulary"] == VOCABULARY.fingerprint()


def test_an_image_has_the_layout_of_a_captioned_image(folder):
    document = Samples(folder).document(0, 1)

    text, vision = parse(VOCABULARY, document.tokens)
    expected = captioned_image(VOCABULARY, text, vision.codes[0])
    np.testing.assert_array_equal(document.tokens, expected.tokens)
    assert [span.trained for span in document.spans] == [False, True, True]
    assert VOCABULARY.decode(document.spans[0].tokens) == "a cat"


def test_a_clip_has_the_layout_of_a_captioned_clip(folder):
    document = Samples(folder).document(1, 0)

    text, vision = parse(VOCABULARY, document.tokens)
    expected = captioned_clip(VOCABULARY, text, vision.codes, 8, 1)
    np.testing.assert_array_equal(document.tokens, expected.tokens)


def test_an_answer_follows_its_prompt(folder):
    prompt, answer = Samples(folder).document(3, 0).spans

    assert not prompt.trained
    asked = "You are a helpful assistant. USER: what is a cat. ASSISTANT:"
    assert VOCABULARY.decode(prompt.tokens) == asked
    assert 0 < len(answer.tokens) <= 12
    assert answer.trained


def test_a_sample_is_what_its_seed_draws_alone(folder, sampler):
    sample = Samples(folder).prompts[0][2]

    alone = replace(SETTINGS, seed=sample.seed)
    (codes,) = draw(sampler.decoder, VOCABULARY, [VisionPrompt("a cat", Meta(2, 3))], alone)

    *_, vision = parse(VOCABULARY, Samples(folder).document(0, 2).tokens)
    np.testing.assert_array_equal(vision.codes, codes)


def test_samples_of_a_prompt_differ(folder):
    samples = Samples(folder)

    assert len({samples.document(0, i).tokens.tobytes() for i in range(3)}) == 3


def test_there_is_something_to_look_at(folder):
    assert Image.open(folder / "media" / "0-1.png").size == (24, 16)
    with av.open(str(folder / "media" / "1-2.mp4")) as clip:
        assert len(list(clip.decode(video=0))) == 8
    document = Samples(folder).document(2, 0)
    (said,) = parse(VOCABULARY, document.spans[1].tokens)
    assert (folder / "media" / "2-0.txt").read_text(encoding="utf-8") == said


def test_a_batch_has_one_grid_or_answers_only():
    jobs = jobs_of(PROMPTS, 3, 0)

    batches = [[job.sample.id for job in batch] for batch in batches_of(jobs, 4)]

    assert batches == [
        ["0-0", "0-1", "0-2"],
        ["1-0", "1-1", "1-2"],
        ["2-0", "2-1", "2-2", "3-0"],
        ["3-1", "3-2"],
    ]


# Interruptions


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, batches):
    """A sampler is interrupted when it draws the batch after so many."""
    drawn = []
    whole = Sampler._documents

    def documents(self, batch, progress):
        if len(drawn) == batches:
            raise Interrupted
        drawn.append(batch)
        return whole(self, batch, progress)

    monkeypatch.setattr(Sampler, "_documents", documents)
    return drawn


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_an_interrupted_run_goes_on_and_changes_nothing(sampler, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            run(sampler, tmp_path / "samples")
    assert not (tmp_path / "samples" / "manifest.json").exists()
    with monkeypatch.context() as patch:
        drawn = interrupt_after(patch, 99)
        assert run(sampler, tmp_path / "samples")

    assert len(drawn) == len(batches_of(jobs_of(PROMPTS, 3, 0), 2)) - 3
    assert contents(tmp_path / "samples") == contents(folder)


def test_a_finished_folder_is_left_as_it_is(sampler, folder, monkeypatch):
    before = contents(folder)
    interrupt_after(monkeypatch, 0)

    assert not run(sampler, folder)

    assert contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 3}, "begun with batch 2, and now it is 3"),
        ({"checkpoint_digest": "xyz"}, "begun with another checkpoint"),
        ({"prompts_digest": "xyz"}, "begun with other prompts"),
    ],
)
def test_a_folder_of_other_settings(changes, message, sampler, folder):
    with pytest.raises(InputError, match=f"{message}; give the same, or choose another --out"):
        run(sampler, folder, **changes)


def test_the_checkpoint_may_have_moved(sampler, folder):
    assert not run(sampler, folder, checkpoint="elsewhere")


def test_before_the_first_batch_settings_may_change(sampler, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        with pytest.raises(Interrupted):
            run(sampler, tmp_path / "samples", [CAT], batch=3)

    assert run(sampler, tmp_path / "samples", [CAT], batch=2)


def test_a_folder_with_other_files(sampler, tmp_path):
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")

    with pytest.raises(InputError, match="holds other files; choose another --out"):
        run(sampler, tmp_path)


def test_a_folder_that_another_process_draws_into(sampler, tmp_path, monkeypatch):
    refusals = []

    def second_run(self, batch, progress):
        with pytest.raises(InputError, match="another process draws samples here") as refused:
            run(sampler, tmp_path / "samples", [CAT])
        refusals.append(refused)
        raise Interrupted

    monkeypatch.setattr(Sampler, "_documents", second_run)
    with pytest.raises(Interrupted):
        run(sampler, tmp_path / "samples", [CAT])
    assert refusals


def test_a_tokenizer_of_another_codebook(sampler, tokenizer):
    vocabulary = replace(VOCABULARY, num_codes=128)

    with pytest.raises(InputError, match="the vision tokenizer has 64 codes, the model 128"):
        Sampler(sampler.decoder, vocabulary, tokenizer, SETTINGS, 12)


def test_the_stored_vision_is_a_whole_span(folder):
    _, vision, _ = Samples(folder).document(0, 0).spans

    (part,) = parse(VOCABULARY, vision.tokens)
    assert isinstance(part, Vision)
