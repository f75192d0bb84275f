"""A server over a tiny decoder with random weights, in this process, on a port of its own."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.generation.files.reading import Sizes
from emu3_megatron.generation.generator import Generator
from emu3_megatron.model import Decoder
from emu3_megatron.serving.app import build_app
from emu3_megatron.serving.bounds import Bounds
from emu3_megatron.serving.commands import Channel
from emu3_megatron.serving.connections import guarded_protocol
from emu3_megatron.serving.engine import Engine
from emu3_megatron.serving.metrics import Metrics
from emu3_megatron.serving.scoring import Scorer
from emu3_megatron.serving.service import ServedModel, Service
from emu3_megatron.serving.worker import Worker
from emu3_megatron.vision.tokenizer import VisionTokenizer
from support.ports import free_port

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
CONTEXT, ROWS = 400, 8


def tiny_tokenizer() -> VisionTokenizer:
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    return VisionTokenizer(network).eval()


def make_service(
    decoder: Decoder,
    tokenizer: VisionTokenizer,
    bounds: Bounds | None = None,
    key: str | None = None,
    rows: int = ROWS,
    context: int = CONTEXT,
) -> Service:
    generator = Generator(decoder, VOCABULARY, rows=rows, capacity=context)
    model = ServedModel(
        "tiny",
        VOCABULARY,
        tokenizer,
        context,
        rows,
        grid=(3, 4),
        guidance=3.0,
        shown=Sizes.of(16 * 16, 4, 32),
    )
    metrics = Metrics(model.name)
    worker = Worker(generator, Scorer(decoder, generator.forward, VOCABULARY.size))
    return Service(model, Engine(worker, Channel(), metrics), metrics, bounds, key)


@contextmanager
def running(service: Service) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile."""
    port = free_port()
    config = uvicorn.Config(
        build_app(service),
        port=port,
        http=guarded_protocol(service.bounds),
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def events_of(response: httpx.Response) -> Iterator[tuple[str | None, Any]]:
    """Name and data of each event of a stream."""
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield name, data if data == "[DONE]" else json.loads(data)
            name = None


def png(width: int = 16, height: int = 16, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(data: bytes, kind: str = "png") -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(data, kind)}}


def asked(*parts: str | dict[str, Any]) -> list[dict[str, Any]]:
    """Messages with one question."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]
