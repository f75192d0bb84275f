"""Times of `emu3 serve` under 64 mixed calls with open arrivals.

`arrivals` is how many calls come a second, at random (Poisson), whatever the server has done so
far. A third asks for a guided image and sees rows of it, a third asks about an image, a third asks
in text; answers are streamed.

The time to the first row is from the call to the first partial picture, that to the first token
from the call to the first piece of text. Client and server share this machine.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from harness import describe_machine
from PIL import Image

CALLS = 64
ARRIVALS = (1.0, 4.0)


@dataclass(frozen=True)
class Timed:
    """A call: its kind, and seconds from its arrival; None: what it waited for never came."""

    kind: str
    first: float | None
    whole: float


def picture() -> str:
    values = np.random.default_rng(0).integers(0, 256, (104, 160, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def call(number: int) -> tuple[str, str, dict[str, Any]]:
    """Kind, path and body."""
    kind = ("image", "about an image", "text")[number % 3]
    common = {"seed": number, "stream": True}
    if kind == "image":
        body = {"prompt": f"picture {number}", "guidance": 3, "partial_images": 13, **common}
        return kind, "/v1/images/generations", body
    content: list[dict[str, Any]] = [{"type": "text", "text": f"Question {number}?"}]
    if kind == "about an image":
        content.append({"type": "image_url", "image_url": {"url": picture()}})
    messages = [{"role": "user", "content": content}]
    return kind, "/v1/chat/completions", {"messages": messages, "max_tokens": 64, **common}


async def follow(client: httpx.AsyncClient, number: int) -> Timed:
    kind, path, body = call(number)
    begun, first = time.perf_counter(), None
    async with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            assert not line.startswith("event: error"), line
            has_begun = '"partial_image_index"' in line or '"content": "' in line
            if first is None and has_begun and '"content": ""' not in line:
                first = time.perf_counter() - begun
    return Timed(kind, first, time.perf_counter() - begun)


async def drive(address: str, rate: float) -> list[Timed]:
    draw, tasks = random.Random(0), []
    limits = httpx.Limits(max_connections=CALLS)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        for number in range(CALLS):
            tasks.append(asyncio.create_task(follow(client, number)))
            await asyncio.sleep(draw.expovariate(rate))
        return await asyncio.gather(*tasks)


@contextmanager
def served(checkpoint: Path, port: int) -> Iterator[str]:
    command = [sys.executable, "-m", "emu3_megatron", "serve", str(checkpoint)]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=sys.stderr)
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not is_up(address):
            time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


def percentiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.percentile(values, p)) for name, p in (("p50", 50), ("p99", 99))}


def row(rate: float, times: list[Timed]) -> dict[str, Any]:
    """Milliseconds."""
    named = {"first row": ["image"], "first token": ["text", "about an image"]}
    found: dict[str, Any] = {"arrivals_per_second": rate, "calls": len(times)}
    found["answered"] = len(times)  # one that fails ends the benchmark
    for name, kinds in named.items():
        firsts = [1e3 * t.first for t in times if t.kind in kinds and t.first is not None]
        found[name.replace(" ", "_") + "_ms"] = {"calls": len(firsts), **percentiles(firsts)}
    for kind in ("image", "about an image", "text"):
        wholes = [1e3 * t.whole for t in times if t.kind == kind]
        found[kind.replace(" ", "_") + "_whole_ms"] = percentiles(wholes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path, help="of emu3 demo: demo/decoder-run")
    parser.add_argument("--port", type=int, default=8077)
    parser.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {**describe_machine(), "rows": []}
    with served(arguments.checkpoint, arguments.port) as address:
        result["model"] = httpx.get(f"{address}/v1/models").json()["data"][0]
        result["model"].pop("created")
        asyncio.run(drive(address, 1e3))  # not counted: it warms up
        for rate in ARRIVALS:
            load = os.getloadavg()[0]
            found = {**row(rate, asyncio.run(drive(address, rate))), "load_before": load}
            result["rows"].append(found)
            print(json.dumps(found), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
