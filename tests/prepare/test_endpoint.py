"""Captions from a server: a real one, in a process of its own."""

import json
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from support.ports import free_port

from emu3_megatron.config.prepare import EndpointConfig, PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.captions.answers import NoCaption
from emu3_megatron.prepare.captions.endpoint import Endpoint, as_sent
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table

# Answers in the shape of OpenAI's chat completions: the first request of each picture with 503, and
# black ones always; blue pictures with HTTP 400, green ones with nonsense, bright red ones slowly.
# GET tells how many requests came, and which authorization the last one had.
SERVER = """
import base64, io, json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from PIL import Image

seen, count, authorization = set(), 0, None

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        global count, authorization
        count += 1
        authorization = self.headers["Authorization"]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *pictures, text = body["messages"][0]["content"]
        data = base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2])
        red, green, blue = Image.open(io.BytesIO(data)).resize((1, 1)).getpixel((0, 0))
        key = (data, text["text"])
        if key not in seen or red + green + blue < 9:
            seen.add(key)
            return self.answer(503, {})
        if red > 200:
            time.sleep(1)
        if blue > 200:
            return self.answer(400, {"error": "no blue"})
        if green > 200:
            return self.answer(200, {"nonsense": True})
        caption = f"{text['text']} red {red // 16}, {len(pictures)} pictures"
        self.answer(200, {"choices": [{"message": {"content": caption}}]})

    def do_GET(self):
        self.answer(200, [count, authorization])

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def url():
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    for _ in range(300):
        try:
            urlopen(f"http://127.0.0.1:{port}").close()
            break
        except OSError:
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait()


def colour(red=0, green=0, blue=0):
    return as_sent(Image.new("RGB", (64, 48), (red, green, blue)), side=768)


def config(url, **values):
    return EndpointConfig(url=url, model="any", **{"prompts": ["Say"], **values})


def test_a_busy_server_is_asked_again(url):
    assert Endpoint(config(url)).captions([colour(red=160)]) == ["Say red 10, 1 pictures"]


def test_each_prompt_is_a_caption_and_a_clip_is_many_pictures(url):
    captions = Endpoint(config(url, prompts=["Say", "说"])).captions([colour(red=32)] * 12)

    assert captions == ["Say red 2, 12 pictures", "说 red 2, 12 pictures"]


@pytest.mark.parametrize(
    ("picture", "reason"), [({"blue": 255}, "HTTP 400"), ({"green": 255}, "holds no caption")]
)
def test_what_the_server_refuses_gets_no_caption(url, picture, reason):
    with pytest.raises(NoCaption, match=reason):
        Endpoint(config(url)).captions([colour(**picture)])


def test_a_server_that_is_down_stops_the_run():
    nobody = config(f"http://127.0.0.1:{free_port()}/v1", attempts=2)

    with pytest.raises(InputError, match=r"no answer \(.*refused\); start the server and run the"):
        Endpoint(nobody).captions([colour()])


def test_a_server_that_stays_busy_is_asked_so_many_times_and_stops_the_run(url):
    before, _ = requests(url)

    with pytest.raises(InputError, match=r"no answer \(HTTP 503 Service Unavailable\); start the"):
        Endpoint(config(url, attempts=3)).captions([colour()])

    assert requests(url)[0] == before + 3


def test_a_server_that_takes_too_long_stops_the_run(url):
    with pytest.raises(InputError, match=r"no answer \(timed out after 0\.2 s\)"):
        Endpoint(config(url, attempts=2, timeout=0.2)).captions([colour(red=255)])


def test_the_key_is_read_from_the_variable(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of another server")
    Endpoint(config(url)).captions([colour(red=48)])
    assert requests(url)[1] == "Bearer none"

    monkeypatch.setenv("CAPTION_KEY", "secret")
    Endpoint(config(url, key_variable="CAPTION_KEY")).captions([colour(red=48)])
    assert requests(url)[1] == "Bearer secret"


def test_a_variable_that_is_not_set_is_named(url):
    with pytest.raises(InputError, match=r"key_variable: NO_SUCH_KEY is not set"):
        Endpoint(config(url, key_variable="NO_SUCH_KEY"))


def test_without_openai_the_package_is_named(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(InputError, match=r"pip install 'emu3-megatron\[prepare\]'"):
        Endpoint(config(url))


@pytest.fixture
def recipe(url, tmp_path, tokenizer):
    """Four dark photos, one with a caption, and one that the server refuses."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 64, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((64, 48), 0).save(photos / f"dark{i}.png")
    Image.new("RGB", (64, 48), "blue").save(photos / "refused.png")
    (photos / "dark0.txt").write_text("a caption of its own", encoding="utf-8")
    tokenizer.save(tmp_path / "tokenizer")
    return PrepareRecipe.model_validate(
        {
            "out": tmp_path / "out",
            "model": "emu3-tiny",
            "tokenizer": tmp_path / "tokenizer",
            "images": {
                "source": photos,
                "min_side": 32,
                "min_quality": 0,
                "ocr": False,
                "near_duplicate_bits": -1,
                "area": 1536,
                "captions": {"endpoint": config(url).model_dump()},
            },
            "packs": [],
            "run": {"executor": "local"},
        }
    )


def test_the_pipeline_asks_for_what_has_no_caption_and_asks_once(url, recipe, tmp_path):
    manifest = prepare(recipe, ["images"])
    rows = {row["source"]: row for row in read_table(tmp_path / "out" / "images.parquet")}

    assert rows["dark0.png"]["captions"] == ["a caption of its own"]
    assert rows["dark1.png"]["captions"][0].startswith("Say red")
    assert (
        rows["refused.png"]["reason"]
        == "no caption: HTTP 400 Bad Request: no blue, from the endpoint"
    )
    assert manifest["kinds"]["images"]["kept"] == 4

    before, _ = requests(url)
    prepare(recipe, ["images"])
    assert requests(url)[0] == before + 1  # the refused one


def test_what_was_answered_is_not_asked_again_when_other_photos_are_kept(url, recipe):
    (recipe.images.source / "refused.png").unlink()
    prepare(recipe, ["images"])
    before = requests(url)

    (recipe.images.source / "dark1.png").unlink()
    prepare(recipe, ["images"])

    assert requests(url) == before


def requests(url):
    """How many came, and the authorization of the last."""
    with urlopen(url) as response:
        return json.load(response)
