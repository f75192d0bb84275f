"""The engine: many calls at once, clients that vanish, a queue that is full, and its death."""

import asyncio
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.ports import free_port
from support.processes import _context
from support.serving import (
    ROWS,
    SMALL,
    VOCABULARY,
    asked,
    events_of,
    make_service,
    png,
    running,
    shown,
    tiny_tokenizer,
    wait_until,
)

from emu3_megatron import parallel
from emu3_megatron.generation.images import VisionPrompt
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.model import build_decoder
from emu3_megatron.serving.bounds import Bounds
from emu3_megatron.serving.commands import Begin, Cancel, Failed
from emu3_megatron.serving.running import bind, run

CHAT, IMAGES, TEXT = "/v1/chat/completions", "/v1/images/generations", "/v1/completions"


def mixed(count: int) -> list[tuple[str, dict]]:
    """Calls of all kinds with seeds of their own."""
    kinds = [
        lambda i: (IMAGES, {"prompt": f"picture {i}", "size": "32x24", "seed": i, "n": 1 + i % 2}),
        lambda i: (CHAT, {"messages": asked(shown(png(seed=i)), "what?"), "max_tokens": 20}),
        lambda i: (CHAT, {"messages": asked(f"question {i}"), "max_tokens": 30, "stream": True}),
        lambda i: (IMAGES, {"prompt": f"{i}", "size": "24x24", "stream": True, "guidance": 1}),
        lambda i: (TEXT, {"prompt": f"text {i}", "echo": True, "logprobs": 1, "max_tokens": 2}),
    ]
    calls = [kinds[i % len(kinds)](i) for i in range(count)]
    return [(path, {"seed": 1, **body}) for path, body in calls]


def test_of_64_mixed_calls_with_open_arrivals_none_is_lost(client, service):
    calls = mixed(64)
    draw = random.Random(0)
    arrivals = sorted(draw.uniform(0, 1.5) for _ in calls)

    def call(arrival: float, path: str, body: dict) -> str:
        time.sleep(max(0.0, begun + arrival - time.monotonic()))
        return stripped(client.post(path, json=body))

    begun = time.monotonic()
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(call, arrivals, *zip(*calls, strict=True)))

    alone = [stripped(client.post(path, json=body)) for path, body in calls]
    assert answers == alone  # each says what it says alone
    wait_until(lambda: service.engine.worker.generator.num_rows == 0)
    assert service.engine.num_streams == 0


def stripped(response: httpx.Response) -> str:
    """What was answered, without times and names."""
    assert response.is_success, response.text
    drop = lambda event: {
        k: v for k, v in event.items() if k not in ("created", "id", "created_at")
    }
    if "event-stream" in response.headers["content-type"]:
        events = [e if e == "[DONE]" else drop(e) for _, e in events_of(response)]
        texts = [e["choices"][0]["delta"].get("content") for e in events if "choices" in e]
        return "".join(filter(None, texts)) or json.dumps(events)
    return json.dumps(drop(response.json()))


def test_a_cancelled_request_frees_its_rows_before_the_next_step(decoder, tokenizer):
    worker = make_service(decoder, tokenizer).engine.worker
    request = VisionPrompt("a cat", Meta(9, 9)).request(VOCABULARY)
    worker.turn([Begin(0, request, SamplingSettings(), 100)])
    assert worker.generator.num_rows == 2

    worker.turn([Cancel(0)])

    assert worker.generator.num_rows == 0
    assert worker.is_idle


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_a_client_that_vanishes_frees_its_rows(decoder, tokenizer, streamed):
    service = make_service(decoder, tokenizer, context=8000)
    body = {"prompt": "a", "size": "512x512", "n": 4, "guidance": 1}
    with running(service) as client:
        generator = service.engine.worker.generator
        body |= {"stream": streamed, "partial_images": 1}
        with httpx.Client(base_url=client.base_url) as other:
            if streamed:
                with other.stream("POST", IMAGES, json=body):
                    wait_until(lambda: generator.num_rows == 4)
            else:
                with pytest.raises(httpx.ReadTimeout):
                    other.post(IMAGES, json=body, timeout=0.3)
        wait_until(lambda: generator.num_rows == 0, seconds=2)
        assert service.engine.num_streams == 0
        assert not service.is_busy


def test_a_full_queue_refuses_with_a_time_to_come_back(decoder, tokenizer):
    service = make_service(decoder, tokenizer, Bounds(queue=2), context=8000)
    body = {"prompt": "a", "size": "256x256", "guidance": 1, "stream": True}
    with running(service) as client:
        streams = [client.stream("POST", IMAGES, json={**body, "n": 5}) for _ in range(2)]
        for stream in streams:
            stream.__enter__()
        response = client.post(IMAGES, json=body)
        for stream in streams:
            stream.__exit__(None, None, None)

        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["type"] == "rate_limit_error"
        wait_until(lambda: not service.is_busy)
        assert client.post(IMAGES, json={"prompt": "a", "size": "16x16"}).is_success


def test_logits_that_are_not_finite_end_every_stream_and_the_health(tokenizer, mesh):
    decoder = build_decoder(SMALL).eval()
    service = make_service(decoder, tokenizer, context=8000)
    body = {"prompt": "a", "size": "512x512", "stream": True, "guidance": 1}
    with running(service) as client, ThreadPoolExecutor(2) as threads:
        follow = lambda: list(events_of(client.send(request())))
        request = lambda: client.build_request("POST", IMAGES, json=body)
        streams = [threads.submit(follow) for _ in range(2)]
        wait_until(lambda: service.engine.worker.generator.num_rows == 2)
        assert client.get("/health").is_success
        decoder.head.weight.data.fill_(float("nan"))

        for stream in streams:
            name, event = stream.result(20)[-1]
            assert name == "error"
            assert (
                event["error"]["message"] == "the engine has failed; the server must be restarted"
            )
        for response in (client.get("/health"), client.post(IMAGES, json={"prompt": "a"})):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_failed"


def test_a_failed_worker_says_so_and_waits_for_its_end(decoder, tokenizer, monkeypatch):
    worker = make_service(decoder, tokenizer).engine.worker
    monkeypatch.setattr(worker.generator, "step", lambda: 1 / 0)
    request = VisionPrompt("a cat", Meta(2, 2)).request(VOCABULARY)

    assert worker.turn([Begin(0, request, SamplingSettings(), 10)]) == [Failed()]
    assert worker.is_idle
    assert worker.turn([Cancel(0)]) == [Failed()]


def serve(port: int, drain_seconds: float) -> None:
    parallel.start().seed(0, 0)
    bounds = Bounds(drain_seconds=drain_seconds)
    decoder = build_decoder(SMALL).eval()
    run(make_service(decoder, tiny_tokenizer(), bounds, context=8000), bind("127.0.0.1", port))


def serve_broken(port: int) -> None:
    parallel.start().seed(0, 0)
    decoder = build_decoder(SMALL).eval()
    decoder.head.weight.data.fill_(float("nan"))
    service = make_service(decoder, tiny_tokenizer(), Bounds(drain_seconds=0.5))
    run(service, bind("127.0.0.1", port))


def test_a_server_whose_engine_has_failed_says_so_and_ends():
    port = free_port()
    process = _context.Process(target=serve_broken, args=(port,))
    process.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        wait_until(lambda: is_up(client), 60)
        assert client.post(IMAGES, json={"prompt": "a"}).status_code == 503
        assert client.get("/health").status_code == 503
    process.join(20)

    assert process.exitcode == 1


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("patient", [True, False])
def test_sigterm_lets_calls_end_within_a_limit_and_refuses_new_ones(patient):
    port = free_port()
    process = _context.Process(target=serve, args=(port, 30.0 if patient else 0.2))
    process.start()
    size = "160x160" if patient else "640x640"
    body = {"prompt": "a", "size": size, "stream": True, "partial_images": 1, "guidance": 1}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        wait_until(lambda: is_up(client), 60)
        with client.stream("POST", IMAGES, json=body) as response:
            os.kill(process.pid, signal.SIGTERM)
            if patient:
                wait_until(lambda: client.get("/health").status_code == 503)
                refused = client.post(IMAGES, json=body)
                assert refused.status_code == 503
                assert "retry-after" in refused.headers
                names = [name for name, _ in events_of(response)]
                assert names[-1] == "image_generation.completed"
    process.join(20)
    assert process.exitcode == 0


def test_metrics_have_vllms_names(client):
    client.post(IMAGES, json={"prompt": "a", "size": "16x16"})

    text = client.get("/metrics").text

    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("time_to_first_token_seconds_count", "inter_token_latency_seconds_count"),
        *("e2e_request_latency_seconds_count", "request_queue_time_seconds_count"),
        *("prompt_tokens_total", "generation_tokens_total"),
    ):
        assert f'vllm:{name}{{model_name="tiny"}}' in text
    assert 'vllm:request_success_total{finished_reason="stop",model_name="tiny"}' in text


def test_uploads_are_encoded_while_others_are_drawn(decoder, tokenizer, monkeypatch):
    """A slow encoder stalls neither the engine nor the event loop."""
    service = make_service(decoder, tokenizer)
    encode = tokenizer.encode_images

    def slowly(pixels):
        time.sleep(1.0)
        return encode(pixels)

    with running(service) as client, ThreadPoolExecutor(1) as threads:
        client.post(IMAGES, json={"prompt": "a", "size": "16x16"})
        monkeypatch.setattr(type(tokenizer), "encode_images", lambda self, pixels: slowly(pixels))
        body = {"messages": asked(shown(png())), "max_tokens": 2}
        upload = threads.submit(lambda: client.post(CHAT, json=body))
        begun = time.monotonic()
        drawn = client.post(IMAGES, json={"prompt": "a", "size": "16x16"})

        assert drawn.is_success
        assert time.monotonic() - begun < 0.9
        assert not upload.done()
        assert upload.result(20).is_success


def test_the_pool_is_shared_fairly(client):
    """A call for more pictures than there are rows is drawn all the same."""
    answer = client.post(IMAGES, json={"prompt": "a", "size": "16x16", "n": 10}).json()

    assert ROWS < 2 * 10
    assert len(answer["data"]) == 10


def test_calls_leave_no_tasks_behind(decoder, tokenizer):
    service = make_service(decoder, tokenizer)
    with running(service) as client:
        loop = service.engine._loop
        tasks = lambda: asyncio.run_coroutine_threadsafe(_num_tasks(), loop).result(5)
        before = tasks()
        for stream in (True, False):
            body = {"prompt": "a", "size": "16x16", "stream": stream}
            client.post(IMAGES, json=body)

        wait_until(lambda: tasks() == before)


async def _num_tasks() -> int:
    return len(asyncio.all_tasks())
