"""Real clients against `emu3 serve`: openai over a socket, lm-eval, and two tensor ranks."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from support.documented import ROOT, blocks
from support.ports import free_port
from support.serving import asked, data_url, png, shown, wait_until

from emu3_megatron.model.inputs import Inputs
from emu3_megatron.model.layout import SequenceLayout
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.parallel import Mesh

pytestmark = pytest.mark.slow

CAPTION = "A tabby cat looks past the camera."


@contextmanager
def served(demo: Path, *arguments: str, ranks: int = 1, **environment: str) -> Iterator[str]:
    """The address of a server of the demo's decoder, in processes of its own."""
    port = free_port()
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--nproc-per-node", str(ranks)]
        launcher += ["--master-port", str(free_port()), "-m"]
    command = ["emu3_megatron", "serve", f"{demo.name}/decoder-run", "--port", str(port)]
    command += arguments
    process = subprocess.Popen(
        [*launcher, *command], cwd=demo.parent, env={**os.environ, **environment}
    )
    try:
        wait_until(lambda: process.poll() is not None or is_up(port), 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    # torchrun answers a signal with a status of its own.
    assert ranks > 1 or process.returncode == 0


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def address(demo) -> Iterator[str]:
    with served(demo, EMU3_API_KEY="s3cret") as address:
        yield address


@pytest.fixture(scope="module")
def openai(address):
    client = pytest.importorskip("openai")
    return client.OpenAI(base_url=f"{address}/v1", api_key="s3cret", max_retries=0)


def opened(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_openai_lists_the_model(openai):
    assert [model.id for model in openai.models.list()] == ["decoder-run"]


def test_openai_asks_about_an_image(openai):
    answer = openai.chat.completions.create(
        model="decoder-run",
        messages=asked("What is it?", shown(png(160, 104))),
        max_tokens=20,
        temperature=0,
    )

    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens_details.image_tokens > 200


def test_openai_streams_text(openai):
    ask = lambda **more: openai.chat.completions.create(
        model="decoder-run", messages=asked("Hello."), max_tokens=30, seed=1, **more
    )
    whole = ask()

    chunks = list(ask(stream=True, stream_options={"include_usage": True}))

    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_draws(openai):
    answer = openai.images.generate(
        model="decoder-run", prompt=CAPTION, n=2, size="160x104", extra_body={"seed": 1}
    )

    assert [opened(image.b64_json).shape for image in answer.data] == [(104, 160, 3)] * 2
    assert answer.usage.output_tokens == 2 * (13 * 21 + 2)


def test_openai_sees_an_image_grow(openai):
    events = list(
        openai.images.generate(
            model="decoder-run",
            prompt=CAPTION,
            stream=True,
            partial_images=3,
            extra_body={"temperature": 0},
        )
    )

    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 3,
        "image_generation.completed",
    ]
    assert events[-2].b64_json == events[-1].b64_json


def test_openai_makes_a_video(openai):
    # One latent frame: the demo's decoder knows 704 tokens.
    video = openai.videos.create_and_poll(
        model="decoder-run", prompt=CAPTION, size="64x64", seconds="0.5", poll_interval_ms=100
    )

    assert video.status == "completed", video
    content = openai.videos.download_content(video.id).read()
    assert content[4:8] == b"ftyp"


def test_openai_gets_our_errors(openai):
    import openai as library

    with pytest.raises(library.BadRequestError, match="multiples of 8"):
        openai.images.generate(prompt="x", size="31x31")
    with pytest.raises(library.AuthenticationError):
        openai.with_options(api_key="wrong").models.list()
    with pytest.raises(library.NotFoundError, match="no such model"):
        openai.images.generate(prompt="x", model="dall-e-3")


def test_documented_calls_do_what_they_show(address, tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    page = page.replace("http://127.0.0.1:8000", address).replace('"none"', '"s3cret"')
    calls = [block for block in blocks(page, "sh") if block.startswith("curl")]
    assert len(calls) == 4
    for call in calls:
        command = call.replace("curl", "curl -sf -H 'authorization: Bearer s3cret'")
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)

    script = "".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )

    assert {path.name for path in tmp_path.iterdir()} == {"cat-0.png", "cat-1.png", "cat.mp4"}
    assert done.stdout.count("image_generation.partial_image") == 3


def test_a_call_of_lmms_eval_is_taken(address):
    """As `lmms_eval/models/chat/openai.py` of 0.7.3 makes it; lmms-eval needs an older PyAV."""
    part = shown(png(160, 104))
    body = {
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}],
        "model": "decoder-run",
        "max_tokens": 16,
        "temperature": 0,
        "n": 1,
        "seed": 1,
        "presence_penalty": 0,
    }
    headers = {"authorization": "Bearer s3cret"}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)

    assert isinstance(answer.json()["choices"][0]["message"]["content"], str)


def test_a_call_of_vlmevalkit_is_taken(address):
    """As the wrapper of an API in VLMEvalKit makes it: the question behind base64 JPEG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png(160, 104))).save(file, "JPEG")
    image = {"url": data_url(file.getvalue(), "jpeg"), "detail": "low"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "What?"}]
    body = {
        "model": "decoder-run",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "n": 1,
        "temperature": 0,
    }
    headers = {"authorization": "Bearer s3cret"}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)

    assert answer.is_success


TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROWS = [
    {"question": "A tabby cat", "choices": [" looks past the camera.", " is a dog."], "answer": 0},
    {"question": "The sky", "choices": [" x", " yy"], "answer": 1},
]


def test_lm_eval_scores_a_task_of_a_local_file(demo, mesh, address, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"
    )
    task = TASK.replace("TEST", str(tmp_path / "test.jsonl"))
    (tmp_path / "local_choice.yaml").write_text(task, encoding="utf-8")
    arguments = f"model=decoder-run,base_url={address}/v1/completions,num_concurrent=1"
    subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"),
            *("--model_args", f"{arguments},auth_token=s3cret", "--tasks", "local_choice"),
            *("--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"),
        ],
        env={**os.environ, "OPENAI_API_KEY": "s3cret", "HF_HOME": str(tmp_path / "hf")},
        check=True,
        cwd=tmp_path,
    )

    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    scores = [
        [float(pair[0][0]) for pair in row["resps"]]
        for row in sorted(found, key=lambda row: row["doc_id"])
    ]
    np.testing.assert_allclose(scores, [ours(demo, mesh, row) for row in ROWS], atol=1e-4)


def ours(demo: Path, mesh: Mesh, row: dict) -> list[float]:
    """By the decoder itself: of each choice the sum of its tokens' log-probabilities."""
    decoder, _ = open_decoder(demo / "decoder-run", mesh)
    sums = []
    for choice in row["choices"]:
        ids = torch.tensor([[*(row["question"] + choice).encode()]])
        count = ids.shape[1] - 1
        layout = SequenceLayout.of_documents([[0, count]])
        inputs = Inputs(ids[:, :-1], torch.arange(count)[None], layout, labels_bs=ids[:, 1:])
        with torch.inference_mode():
            scores = decoder(inputs, "log_probabilities").log_prob[0]
        sums.append(float(scores[len(row["question"]) - 1 :].sum()))
    return sums


def test_two_tensor_ranks_say_what_one_says(demo):
    def say(address: str) -> list[str]:
        with httpx.Client(base_url=address, timeout=120) as client:
            image = {"prompt": CAPTION, "seed": 1, "n": 2}
            chat = {"messages": asked("Hello.", shown(png(160, 104))), "seed": 1, "max_tokens": 20}
            score = {"prompt": "A tabby cat", "echo": True, "logprobs": 1, "max_tokens": 1}
            drawn = client.post("/v1/images/generations", json=image).json()
            said = client.post("/v1/chat/completions", json=chat).json()
            scored = client.post("/v1/completions", json={**score, "temperature": 0}).json()
        tokens = scored["choices"][0]["logprobs"]["tokens"]
        return [*(one["b64_json"] for one in drawn["data"]), said["choices"], tokens]

    with served(demo) as one:
        alone = say(one)
    with served(demo, ranks=2) as two:
        assert say(two) == alone


def test_ten_thousand_connections_opened_and_left_keep_nobody_out(address):
    host, port = address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for i in range(10_000):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 20))
            if i % 2:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        for _ in range(10):
            assert httpx.get(f"{address}/health", timeout=20).is_success
        headers = {"authorization": "Bearer s3cret"}
        body = {"prompt": CAPTION, "size": "64x64"}
        url = f"{address}/v1/images/generations"
        assert httpx.post(url, json=body, headers=headers, timeout=60).is_success
    assert httpx.get(f"{address}/health", timeout=20).is_success
