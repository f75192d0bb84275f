"""Rows as they are found: what becomes of each kind, and what is odd and why.

The odd kinds are those on which LLaVA, LLaVA-NeXT, LLaMA-Factory and ms-swift differ, and those
that users reported of published sets (mix665k, OneVision).
"""

import pytest

from emu3_megatron.prepare.dialogues.parsing import OddRowError, parse_row
from emu3_megatron.prepare.dialogues.rows import NotJson


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def row(*messages, **values):
    return {"id": "7", "conversations": list(messages), **values}


def turns(found):
    return [(turn.parts, turn.answer) for turn in found.turns]


def names(found):
    return [medium.name for medium in found.media]


def test_llava():
    found = parse_row(row(human("<image>\nWhat is it?"), gpt("A cat."), image="coco/1.jpg"))

    assert turns(found) == [([0, "What is it?"], "A cat.")]
    assert names(found) == ["coco/1.jpg"]
    assert found.system is None


def test_role_and_content():
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]

    assert turns(parse_row({"messages": messages})) == [(["one"], "two")]


def test_typed_parts():
    content = [{"type": "image"}, {"type": "text", "text": "one"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    ]

    found = parse_row({"messages": messages, "images": ["a.png"]})

    assert turns(found) == [([0, "one"], "two")]


def test_a_system_text():
    assert parse_row(
        row({"from": "system", "value": "Be brief."}, human("a"), gpt("b"))
    ).system == ("Be brief.")
    assert parse_row(row({"from": "system", "value": " "}, human("a"), gpt("b"))).system is None


def test_an_image_stays_where_it_is_marked():
    """LLaVA moves it to the front."""
    found = parse_row(row(human("Look here: <image> What is it?"), gpt("A cat."), image="1.jpg"))

    assert turns(found) == [(["Look here: ", 0, " What is it?"], "A cat.")]


def test_the_line_breaks_beside_a_mark_belong_to_it():
    found = parse_row(row(human("What is it?\n<image>"), gpt("A cat."), image="1.jpg"))

    assert turns(found) == [(["What is it?", 0], "A cat.")]


def test_images_of_several_turns():
    found = parse_row(
        row(
            human("<image>\n<image>\nWhich is larger?"),
            gpt("The first."),
            human("And of <image> and the second?"),
            gpt("The second."),
            image=["1.jpg", "2.jpg", "3.jpg"],
        )
    )

    assert turns(found) == [
        ([0, 1, "Which is larger?"], "The first."),
        (["And of ", 2, " and the second?"], "The second."),
    ]


def test_a_lone_name_is_one_image():
    """Characters of a string are not counted as images (LLaMA-Factory issue 5883)."""
    found = parse_row(row(human("<image>\na"), gpt("b"), image="abc.jpg"))

    assert names(found) == ["abc.jpg"]


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("nothing", [None, "", [], float("nan")])
def test_text_alone_is_kept(key, nothing):
    """As 40,688 rows of mix665k are; an image of zeros is not added."""
    found = parse_row(row(human("a"), gpt("b"), **{key: nothing}))

    assert turns(found) == [(["a"], "b")]
    assert found.media == []


def test_keys_without_meaning_are_passed_over():
    """mix665k's text rows have a key `model` that others lack."""
    assert turns(parse_row(row(human("a"), gpt("b"), model=""))) == [(["a"], "b")]


def test_a_clip():
    found = parse_row(row(human("<video>\na"), gpt("b"), video="1.mp4"))

    assert turns(found) == [([0, "a"], "b")]
    assert found.media[0].kind == "video"


def test_a_clip_that_is_marked_as_an_image():
    """As LLaVA-Video writes them, in rows that have no image."""
    found = parse_row(row(human("<image>\na"), gpt("b"), video="1.mp4"))

    assert turns(found) == [([0, "a"], "b")]


def test_an_image_and_a_clip():
    asked = human("First <video>, then <image>")
    found = parse_row(row(asked, gpt("b"), image="1.jpg", video="1.mp4"))

    assert turns(found) == [(["First ", 1, ", then", 0], "b")]
    assert names(found) == ["1.jpg", "1.mp4"]


def test_an_image_inside_the_row():
    """As OneVision's Parquet files have them."""
    found = parse_row(row(human("<image>a"), gpt("b"), image={"bytes": b"png", "path": "1.png"}))

    assert names(found) == [None]


def test_an_image_named_by_its_path():
    found = parse_row(row(human("<image>a"), gpt("b"), image={"bytes": None, "path": "1.png"}))

    assert names(found) == ["1.png"]


ODD = {
    "the assistant begins": (
        row(gpt("a"), human("b"), gpt("c")),
        "starts with the assistant: a user's question comes first",
    ),
    "two questions running": (
        row(human("a"), human("b"), gpt("c")),
        "two turns running: both of the user, at message 2",
    ),
    "two answers running": (
        row(human("a"), gpt("b"), gpt("c")),
        "two turns running: both of the assistant, at message 3",
    ),
    "two questions behind a system text": (
        row({"from": "system", "value": "s"}, human("a"), human("b")),
        "two turns running: both of the user, at message 3",
    ),
    "no answer": (row(human("a"), gpt("b"), human("c")), "no answer: the last turn is the user's"),
    "more images than marks": (
        row(human("<image>a"), gpt("b"), image=["1.jpg", "2.jpg"]),
        "images and marks: 2 images, 1 <image> marks",
    ),
    "an image without a mark": (  # LLaMA-Factory issue 5329
        row(human("a"), gpt("b"), image="1.jpg"),
        "images and marks: 1 images, 0 <image> marks",
    ),
    "fewer images than marks": (
        row(human("<image><image>a"), gpt("b"), image="1.jpg"),
        "images and marks: 1 images, 2 <image> marks",
    ),
    "a mark without an image": (
        row(human("<image>a"), gpt("b")),
        "images and marks: 0 images, 1 <image> marks",
    ),
    "a clip without a mark": (
        row(human("<image>a"), gpt("b"), image="1.jpg", video="1.mp4"),
        "videos and marks: 1 videos, 0 <video> marks",
    ),
    "a mark in an answer": (
        row(human("a"), gpt("<image>"), image="1.jpg"),
        "mark in an answer: <image>, but only questions show images",
    ),
    "an empty answer": (  # row 245,723 of mix665k
        row(human("a"), gpt("b"), human("c"), gpt(" ")),
        "empty answer: of turn 2",
    ),
    "an empty question": (row(human("\n"), gpt("b")), "empty question: of turn 1"),
    "an unknown speaker": (
        row(human("a"), {"from": "bot", "value": "b"}),
        "unknown role: 'bot' in",
    ),
    "a system text in between": (
        row(human("a"), {"from": "system", "value": "b"}),
        "unknown role: 'system' in message 2",
    ),
    "no text": (row(human("a"), gpt(None)), "no text: in message 2"),
    "parts of an unknown type": (
        row(human([{"type": "audio"}]), gpt("a")),
        "no text: in message 1",
    ),
    "images named twice": (
        row(human("<image>a"), gpt("b"), image="1.jpg", images=["1.jpg"]),
        "images named twice: by image and by images",
    ),
    "a number for a name": (
        row(human("<image>a"), gpt("b"), image=7),
        "no name: '7' where images are named",
    ),
    "a clip inside the row": (
        row(human("<video>a"), gpt("b"), video={"bytes": b"mp4"}),
        "no name: .* where videos are named",
    ),
    "no messages": ({"id": 1}, "no dialogue: neither conversations and messages"),
    "both kinds of messages": (
        {"conversations": [human("a")], "messages": [human("a")]},
        "no dialogue: both conversations and messages",
    ),
    "an empty list of messages": (row(), "no dialogue: conversations is no list of messages"),
    "messages that are texts": (row("a", "b"), "no dialogue: message 1 has neither from nor role"),
    "a system text alone": (
        row({"from": "system", "value": "s"}),
        "no dialogue: nothing but a sys",
    ),
    "a list for a row": ([1, 2], "no dialogue: a list and no row"),
    "a line that is no JSON": (NotJson("Expecting value"), "not JSON: Expecting value"),
}


@pytest.mark.parametrize(("odd", "reason"), ODD.values(), ids=ODD)
def test_odd_rows(odd, reason):
    with pytest.raises(OddRowError, match=reason) as error:
        parse_row(odd)
    assert "\n" not in str(error.value)
