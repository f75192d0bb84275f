"""/v1/completions: text behind prompts, and log-probabilities that equal the decoder's."""

import numpy as np
import pytest
import torch
from support.serving import VOCABULARY, events_of

from emu3_megatron.generation.answers import say
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import open_prompt
from emu3_megatron.model.inputs import Inputs
from emu3_megatron.model.layout import SequenceLayout

PATH = "/v1/completions"
IDS = [VOCABULARY.bos, *b"the cat sat"]


def log_probabilities(decoder, ids):
    """Those of the decoder, of all tokens but the first."""
    tokens = torch.tensor([ids])
    layout = SequenceLayout.of_documents([[0, len(ids) - 1]])
    positions = torch.arange(len(ids) - 1)[None]
    inputs = Inputs(tokens[:, :-1], positions, layout, labels_bs=tokens[:, 1:])
    with torch.inference_mode():
        return decoder(inputs, "log_probabilities")


def test_text_is_that_of_the_generator(client, decoder):
    body = {"prompt": ["a cat", "a dog"], "temperature": 0, "max_tokens": 10}
    choices = client.post(PATH, json=body).json()["choices"]

    prompts = [open_prompt(VOCABULARY, [text]) for text in body["prompt"]]
    expected = say(decoder, VOCABULARY, prompts, SamplingSettings(temperature=0), max_tokens=10)
    assert [choice["text"] for choice in choices] == expected
    assert [choice["index"] for choice in choices] == [0, 1]


def test_echoed_log_probabilities_equal_the_decoders(client, decoder):
    # As lm-eval's local-completions asks.
    body = {"prompt": [IDS, IDS[:5]], "echo": True, "logprobs": 1, "max_tokens": 1}
    choices = client.post(PATH, json={**body, "temperature": 0, "seed": 1234}).json()["choices"]

    for choice, ids in zip(choices, body["prompt"], strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(ids) + 1
        assert found["token_logprobs"][0] is None
        expected = log_probabilities(decoder, ids)
        np.testing.assert_allclose(found["token_logprobs"][1:-1], expected.log_prob[0], atol=1e-5)
        likeliest = [
            own == max(top.values())
            for own, top in zip(
                found["token_logprobs"][1:-1], found["top_logprobs"][1:-1], strict=True
            )
        ]
        assert likeliest == expected.correct[0].tolist()


def test_log_probabilities_of_what_was_said_alone(client):
    body = {"prompt": IDS, "logprobs": 3, "max_tokens": 4, "seed": 2}
    (choice,) = client.post(PATH, json=body).json()["choices"]
    echoed = client.post(PATH, json={**body, "echo": True}).json()["choices"][0]

    found = choice["logprobs"]
    assert len(found["tokens"]) <= 4
    assert found["token_logprobs"] == echoed["logprobs"]["token_logprobs"][len(IDS) :]
    assert echoed["text"] == "the cat sat" + choice["text"]


def test_nothing_new_need_be_said(client):
    body = {"prompt": "the cat", "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = client.post(PATH, json=body).json()["choices"]

    assert choice["text"] == "the cat"
    assert choice["logprobs"]["tokens"] == ["<|extra_203|>", *"the cat"]


def test_a_stream_says_the_same(client):
    body = {"prompt": ["a cat", "a dog"], "seed": 3, "max_tokens": 12}
    whole = client.post(PATH, json=body).json()["choices"]

    with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        events = [event for _, event in events_of(response)]

    assert events.pop() == "[DONE]"
    texts = ["", ""]
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "prompt: give 1 to 128 prompts"),
        ({"prompt": [[]]}, "prompt: give ids"),
        ({"prompt": [VOCABULARY.size]}, "prompt: give ids"),
        ({"prompt": [-1]}, "prompt: give ids"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt: give 1 to 128 prompts"),
        ({"prompt": [5] * 400}, "tokens, prompt and result"),
        ({"prompt": [VOCABULARY.vision_end]}, "token"),
        ({"logprobs": 6}, "logprobs: "),
        ({"logprobs": True}, "logprobs: "),
        ({"max_tokens": 0}, "max_tokens: 0 is for echo"),
        ({"stream": True, "echo": True}, "stream: not supported together"),
        ({"best_of": 3}, "best_of: not supported"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused_by_its_name(client, fields, message):
    response = client.post(PATH, json={"prompt": "a cat", **fields})

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
