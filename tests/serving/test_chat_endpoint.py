"""/v1/chat/completions: answers of the generator, whole and streamed, with images in and out."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.serving import VOCABULARY, asked, events_of, png, shown

from emu3_megatron.generation.answers import answer
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Turn, Vision, vision_span
from emu3_megatron.media.images import to_image, to_pixels

PATH = "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 12}


def codes_of(tokenizer, data: bytes) -> Vision:
    pixels_1chw = to_pixels(Image.open(io.BytesIO(data)))[None]
    return Vision.image(tokenizer.encode_images(pixels_1chw)[0].numpy())


def test_answers_are_those_of_the_generator_with_images_where_they_stand(
    client, decoder, tokenizer
):
    first, second = png(seed=1), png(seed=2)
    messages = asked("one ", shown(first), " two ", shown(second), " which?")

    said = client.post(PATH, json={"messages": messages, **GREEDY}).json()

    question = ["one ", codes_of(tokenizer, first), " two ", codes_of(tokenizer, second), " which?"]
    settings = SamplingSettings(temperature=0)
    (expected,) = answer(decoder, VOCABULARY, [[Turn(question, None)]], settings, max_tokens=12)
    assert said["choices"][0]["message"]["content"] == expected
    assert said["usage"]["prompt_tokens_details"]["image_tokens"] == 2 * (3 + 2 + 2 * 3 + 2)


def test_a_stream_says_the_same_in_pieces(client):
    body = {"messages": asked("hello"), "seed": 5, "max_tokens": 40}
    whole = client.post(PATH, json=body).json()

    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", PATH, json=streamed) as response:
        events = [event for _, event in events_of(response)]

    assert events.pop() == "[DONE]"
    assert events.pop()["usage"] == whole["usage"]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert sum(map(bool, pieces)) > 5
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_dialogue_goes_on_with_its_own_system_text(client, decoder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
    ]
    said = client.post(PATH, json={"messages": messages, **GREEDY}).json()

    (expected,) = answer(
        decoder,
        VOCABULARY,
        [[Turn(["one?"], "1"), Turn(["two?"], None)]],
        SamplingSettings(temperature=0),
        systems=["Be brief."],
        max_tokens=12,
    )
    assert said["choices"][0]["message"]["content"] == expected


def test_a_stop_string_ends_the_text_before_it(client):
    body = {"messages": asked("hello"), "seed": 5, "max_tokens": 60}
    whole = client.post(PATH, json=body).json()["choices"][0]["message"]["content"]
    stop = whole[10:13]

    said = client.post(PATH, json={**body, "stop": [stop, "never said at all"]}).json()

    assert said["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert said["choices"][0]["finish_reason"] == "stop"


def test_max_tokens_ends_an_answer(client):
    said = client.post(PATH, json={"messages": asked("hello"), "max_completion_tokens": 2}).json()

    assert said["usage"]["completion_tokens"] <= 2


SPELLED = "<|image start|>3*4<|image token|><|extra_204|><|endoftext|><|visual token 000001|>"


def test_special_tokens_in_text_stay_text(client):
    usage = lambda text: client.post(PATH, json={"messages": asked(text), "max_tokens": 1}).json()[
        "usage"
    ]["prompt_tokens_details"]

    spelled, plain = usage(SPELLED), usage("x" * len(SPELLED))

    assert spelled == plain
    assert spelled["image_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages.0: a message of the user belongs here"),
        ({"messages": "hi"}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0: "),
        ({"messages": [*asked("a"), *asked("b")]}, "messages.1: a message of the assistant"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: "),
        ({"messages": asked({"type": "video_url", "video_url": {"url": "x"}})}, "video_url"),
        ({"messages": asked("x" * 500)}, "characters are too long"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": 400}, "tokens, prompt and result"),
        ({"stop": [""]}, "stop: give at most"),
        ({"n": 2}, "n: not supported"),
        ({"tools": [{"type": "function"}]}, "tools: not supported"),
        ({"logprobs": True}, "logprobs: not supported"),
        ({"modalities": ["audio"]}, "modalities: text and image"),
        ({"guided_json": {}}, "guided_json: unknown field"),
        ({"temperature": float("1e9")}, "temperature: "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused_by_its_name(client, fields, message):
    response = client.post(PATH, json={"messages": asked("hello"), **fields})

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_neutral_values_of_fields_that_are_not_supported_pass(client):
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "tools": [], "user": "me"}

    assert client.post(PATH, json={"messages": asked("a"), **GREEDY, **neutral}).is_success


class Replay:
    """A stream of an engine that says given tokens, a few at a time."""

    def __init__(self, tokens):
        self.tokens = tokens

    async def __aiter__(self):
        for i in range(0, len(self.tokens), 3):
            yield self.tokens[i : i + 3]

    def close(self, reason="abort"):
        pass


@pytest.fixture
def drawing(service, monkeypatch):
    """The model says a text with a picture in it; returns the picture."""
    codes_hw = np.arange(12).reshape(3, 4)
    picture = vision_span(VOCABULARY, Meta(3, 4), codes_hw[None]).tolist()
    tokens = [*b"K\xc3\xa4se: ", *picture, *b" so.", VOCABULARY.eos]
    monkeypatch.setattr(service.engine, "open", lambda *request: Replay(tokens))
    return codes_hw


def test_pictures_in_an_answer_come_with_their_place(client, tokenizer, drawing):
    body = {"messages": asked("draw"), "modalities": ["text", "image"]}
    said = client.post(PATH, json=body).json()

    message = said["choices"][0]["message"]
    assert message["content"] == "Käse:  so."
    (image,) = message["images"]
    assert image["offset"] == len("Käse: ")
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    pixels_1chw = tokenizer.decode_images(torch.from_numpy(drawing[None]))
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), to_image(pixels_1chw[0]))
    # Käse: of 7 bytes, " so." of 4, EOS; BOI 3*4 IMG, 3 rows, EOF, EOI.
    assert said["usage"]["completion_tokens_details"] == {"text_tokens": 12, "image_tokens": 22}
    assert said["choices"][0]["finish_reason"] == "stop"


def test_a_stream_has_them_between_its_texts(client, drawing):
    body = {"messages": asked("draw"), "modalities": ["text", "image"], "stream": True}
    with client.stream("POST", PATH, json=body) as response:
        deltas = [e["choices"][0]["delta"] for _, e in events_of(response) if e != "[DONE]"]

    kinds = ["image" if "images" in delta else delta.get("content", "") for delta in deltas]
    before, _, after = "|".join(kinds).partition("image")
    assert before.replace("|", "") == "Käse: "
    assert after.replace("|", "") == " so."
