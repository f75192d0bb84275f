"""Memory does not grow with the size of a file."""

import hashlib
import importlib.util
import io
import json
import platform
import subprocess
import sys
import threading
import tracemalloc
import weakref
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from emu3_megatron.config.prepare import EndpointConfig
from emu3_megatron.media.images import decode_image
from emu3_megatron.prepare import images
from emu3_megatron.prepare.captions import captioning
from emu3_megatron.prepare.captions.captioning import CaptionTask, WriteCaptions
from emu3_megatron.prepare.scores.duplicates import content_hash, file_hash

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MOST = 10**9  # bytes resident, torch and the tiny tokenizer included


def test_a_video_is_hashed_in_blocks(tmp_path):
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(64 << 20)

    tracemalloc.start()
    found = file_hash(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 << 20
    assert found == content_hash([bytes(64 << 20)])
    assert found == hashlib.blake2b(bytes(64 << 20), digest_size=16).hexdigest()


def test_photos_are_reduced_before_the_next_is_read(tmp_path, add_photo, monkeypatch):
    rows = []
    for i in range(4):
        folder = add_photo(f"{i}", size=(640, 480), seed=i)
        rows.append({"source": f"{i}.png", "content": f"{i}"})
    decoded, seen = [], []
    all_asked = threading.Barrier(4)

    def decode(data, path):
        one = decode_image(data, path)
        decoded.append(weakref.ref(one.image))
        return one

    class Endpoint:
        def __init__(self, config):
            self.config = config

        def captions(self, jpegs):
            all_asked.wait(timeout=60)
            held = sum(image() is not None for image in decoded)
            seen.append((held, [Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs]))
            return ["a photo"]

    monkeypatch.setattr(images, "decode_image", decode)
    monkeypatch.setattr(captioning, "Endpoint", Endpoint)
    config = EndpointConfig(url="http://nobody", model="any", concurrency=4)
    write = WriteCaptions(config, partial(images._read_pictures, folder, 64))
    write(CaptionTask(tmp_path / "captions.parquet", rows))

    assert seen == [(0, [(64, 48)])] * 4


HOLD_AND_FREE = """
import sys
import numpy as np
from emu3_megatron.prepare.memory import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "returned":
    return_freed_memory()
del [np.ones(30 << 20, np.uint8) for _ in range(2)][:]
before = resident()
frames = [np.ones(4 << 20, np.uint8) for _ in range(32)]
last = [bytes(1000) for _ in range(1000)]
frames.clear()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a limit of glibc's")
def test_freed_frames_leave_the_process():
    def kept(how):
        command = [sys.executable, "-c", HOLD_AND_FREE, how]
        return int(
            subprocess.run(
                command, check=True, capture_output=True, text=True, encoding="utf-8"
            ).stdout
        )

    assert kept("returned") < 8 << 20
    assert kept("as it is") > 64 << 20


class Captioner(BaseHTTPRequestHandler):
    """An endpoint that says the same of every picture."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        data = json.dumps({"choices": [{"message": {"content": "a picture"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Captioner)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def cases(monkeypatch):
    """The cases of benchmarks/preparing.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(
        "preparing_cases", BENCHMARKS / "preparing_cases.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "preparing_cases", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_64_photos_of_24_megapixels_take_less_than_a_gigabyte(cases, url, tmp_path):
    photos = cases.large_photos(tmp_path / "photos", 64)
    for caption in photos.glob("*.txt"):
        caption.unlink()

    assert cases.peak_of_another("images", str(photos), url) < MOST


@pytest.mark.slow
def test_20_seconds_of_4k_take_less_than_a_gigabyte(cases, url, tmp_path):
    film = cases.large_film(tmp_path / "films", 20)
    (film / "a.txt").unlink()

    assert cases.peak_of_another("clips", str(film), url) < MOST
