"""/v1/images/generations: the pictures that the generator draws, whole and while they grow."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.serving import VOCABULARY, events_of

from emu3_megatron.generation.images import generate_images
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.media.images import to_image

PATH = "/v1/images/generations"


def opened(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_pictures_are_those_of_the_generator(client, decoder, tokenizer):
    answer = client.post(PATH, json={"prompt": "a cat", "n": 2, "size": "32x24", "seed": 7}).json()

    codes_nhw = generate_images(
        decoder, VOCABULARY, ["a cat", "a cat"], 3, 4, SamplingSettings(seed=7)
    )
    pixels_nchw = tokenizer.decode_images(torch.from_numpy(codes_nhw))
    for one, pixels_chw, seed in zip(answer["data"], pixels_nchw, (7, 8), strict=True):
        np.testing.assert_array_equal(opened(one["b64_json"]), to_image(pixels_chw))
        assert one["seed"] == seed
    assert answer["size"] == "32x24"
    # BOS and the caption; BOI 3*4 IMG. A picture: 3 rows of 4 codes and EOL, EOF, EOI.
    assert answer["usage"]["input_tokens_details"] == {"text_tokens": 6, "image_tokens": 5}
    assert answer["usage"]["output_tokens"] == 2 * (3 * 5 + 2)


def test_a_negative_and_other_settings_count(client):
    draw = lambda **fields: client.post(PATH, json={"prompt": "x", "seed": 1, **fields}).json()
    plain = draw()["data"][0]["b64_json"]

    assert draw()["data"][0]["b64_json"] == plain
    for other in ({"negative_prompt": "y"}, {"guidance": 1}, {"top_k": 1}, {"temperature": 0}):
        assert draw(**other)["data"][0]["b64_json"] != plain


def test_a_seed_is_chosen_and_told(client):
    first, second = (client.post(PATH, json={"prompt": "x"}).json()["data"][0] for _ in range(2))

    assert first["seed"] != second["seed"]
    again = client.post(PATH, json={"prompt": "x", "seed": first["seed"]}).json()
    assert again["data"][0] == first


def test_finished_rows_are_shown_and_the_last_preview_is_the_picture(client):
    body = {"prompt": "a cat", "size": "32x40", "seed": 3, "stream": True, "partial_images": 3}
    with client.stream("POST", PATH, json=body) as response:
        events = list(events_of(response))

    names = [name for name, _ in events]
    assert names == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    *partial, completed = (event for _, event in events)
    assert [event["partial_image_index"] for event in partial] == [0, 1, 2]
    assert partial[-1]["b64_json"] == completed["b64_json"]
    whole = client.post(PATH, json={"prompt": "a cat", "size": "32x40", "seed": 3}).json()
    assert completed["b64_json"] == whole["data"][0]["b64_json"]
    assert completed["usage"]["output_tokens_details"]["image_tokens"] == 5 * 5 + 2
    # Of 5 rows the first 2, the first 4, all: grey below.
    assert [(opened(event["b64_json"])[-8:] == 128).all() for event in partial] == [
        *(True, True, False)
    ]


def test_pictures_of_a_stream_are_told_apart(client):
    body = {"prompt": "a cat", "n": 3, "seed": 3, "stream": True, "partial_images": 1}
    with client.stream("POST", PATH, json=body) as response:
        events = [event for _, event in events_of(response)]

    assert sorted((event["index"], event["seed"]) for event in events) == sorted(
        [(0, 3), (1, 4), (2, 5)] * 2
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "31x24"}, "size: both sides must be multiples of 8"),
        ({"size": "3"}, "size: write WIDTHxHEIGHT"),
        ({"size": "8000x8000"}, "the server's context is 400"),
        ({"size": "0x8"}, "size: write WIDTHxHEIGHT"),
        ({"n": 11}, "n: Input should be less than or equal to 10"),
        ({"n": 0}, "n: Input should be greater"),
        ({"n": "2"}, "n: Input should be a valid integer"),
        ({"n": True}, "n: Input should be a valid integer"),
        ({"prompt": 7}, "prompt: Input should be a valid string"),
        ({"prompt": "x" * 401}, "prompt: 401 characters are too long"),
        ({"prompt": "x" * 399}, "tokens, prompt and result"),
        ({"seed": -1}, "seed: Input should be greater"),
        ({"guidance": -1}, "guidance: "),
        ({"temperature": "warm"}, "temperature: Input should be a valid number"),
        ({"top_k": 0}, "top_k: "),
        ({"quality": "hd"}, "quality: not supported; leave it out, or give 'auto'"),
        ({"response_format": "url"}, "response_format: not supported"),
        ({"steps": 30}, "steps: unknown field"),
        ({"partial_images": -1}, "partial_images: "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused_by_its_name(client, fields, message):
    response = client.post(PATH, json={"prompt": "a cat", **fields})

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
