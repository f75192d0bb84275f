"""Files of prompts: a caption a line, or records that say more."""

import json

import pytest

from emu3_megatron.errors import InputError
from emu3_megatron.generation.files.prompts import Defaults, Prompt, first_seeds, read_prompts
from emu3_megatron.grammar import Meta

DEFAULTS = Defaults(lambda text: (4, 5))


def test_a_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs \n", encoding="utf-8")

    prompts = read_prompts(tmp_path / "prompts.txt", DEFAULTS)

    assert prompts == [
        Prompt("a cat", "image", meta=Meta(4, 5)),
        Prompt("two dogs", "image", meta=Meta(4, 5)),
    ]


def test_records_of_every_kind(tmp_path):
    records = [
        {"prompt": "a cat", "height": 2, "width": 3},
        {"prompt": "waves", "frames": 6, "fps": 8},
        {"prompt": "once", "kind": "text"},
        {"prompt": "why", "kind": "chat"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    assert read_prompts(tmp_path / "prompts.jsonl", DEFAULTS) == [
        Prompt("a cat", "image", meta=Meta(2, 3)),
        Prompt("waves", "clip", meta=Meta(4, 5, 6, 8, 3.0)),
        Prompt("once", "text"),
        Prompt("why", "text", chat=True),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "a cat\n\na dog\n", "line 2: empty; leave it out"),
        ("p.txt", "a cat\na dog\na cat\n", "line 3: the same prompt as line 1"),
        ("p.txt", "", "no prompts"),
        ("p.csv", "a cat\n", "prompts are read from .txt and .jsonl"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2: not JSON"),
        ("p.jsonl", '{"caption": "a cat"}\n', "line 1: no record with a text `prompt`"),
        ("p.jsonl", '{"prompt": " "}\n', "line 1: an empty prompt"),
        ("p.jsonl", '{"prompt": "a", "grid": 3}\n', "line 1: unknown field grid"),
        ("p.jsonl", '{"prompt": "a", "kind": "audio"}\n', "line 1: kind 'audio'"),
        ("p.jsonl", '{"prompt": "a", "height": 0}\n', "line 1: height=0"),
        ("p.jsonl", '{"prompt": "a", "frames": 2}\n', "line 1: fps=None"),
        (
            "p.jsonl",
            '{"prompt": "a", "seed": -1}\n',
            "line 1: seed=-1: give a whole number, 0",
        ),
        ("p.jsonl", '{"prompt": "a", "negative": 3}\n', "line 1: negative=3: give a text"),
    ],
)
def test_prompts_that_cannot_be_used(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")

    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name, DEFAULTS)


def test_a_record_has_a_negative_and_a_seed_of_its_own(tmp_path):
    records = [{"prompt": "a cat", "negative": "blurred", "seed": 7}, {"prompt": "a dog"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    cat, dog = read_prompts(tmp_path / "prompts.jsonl", DEFAULTS)

    assert cat == Prompt("a cat", "image", meta=Meta(4, 5), negative="blurred", seed=7)
    assert dog.negative == ""
    assert first_seeds([cat, dog], each=4, seed=100) == [7, 104]


def test_lines_are_clips_where_these_are_asked_for(tmp_path):
    (tmp_path / "prompts.txt").write_text("waves\n", encoding="utf-8")

    (prompt,) = read_prompts(
        tmp_path / "prompts.txt", Defaults(lambda text: (2, 3), "clip", frames=6, fps=8)
    )

    assert prompt == Prompt("waves", "clip", meta=Meta(2, 3, 6, 8, 3.0))
