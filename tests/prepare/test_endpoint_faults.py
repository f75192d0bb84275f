"""Captions from servers that are overrun, slow, out of order, or answer something else."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from emu3_megatron.config.prepare import EndpointConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.captions.answers import NoCaption
from emu3_megatron.prepare.captions.endpoint import Endpoint, as_sent


def says(content, **more):
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return 200, {}, {"choices": [{"message": message, **more}]}


@pytest.fixture
def serve():
    """A function: starts a server of these answers, the last one again and again."""
    servers = []

    def serve(*answers, drip=0.0, **values):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = answers[min(len(asked), len(answers) - 1)]
                asked.append(time.monotonic())
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for byte in data if drip else ():
                        time.sleep(drip)
                        self.wfile.write(bytes([byte]))
                    self.wfile.write(b"" if drip else data)
                except OSError:
                    pass  # the client went away

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/v1"
        config = {"prompts": ["Say"], "attempts": 2, **values}
        return Endpoint(EndpointConfig(url=url, model="any", **config)), asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


PICTURE = [as_sent(Image.new("RGB", (16, 16)), side=768)]
FAILS = 500, {"Retry-After-Ms": "1"}, {}


def test_too_many_requests_wait_as_long_as_the_server_says_and_use_up_no_attempt(serve):
    later = 429, {"Retry-After": "0.2"}, {"error": {"message": "slow down"}}
    endpoint, asked = serve(*[later] * 4, says("a cat"))

    assert endpoint.captions(PICTURE) == ["a cat"]
    assert len(asked) == 5
    assert asked[-1] - asked[0] >= 0.8


def test_a_date_to_come_back_at_is_understood(serve):
    soon = 429, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}, {}
    endpoint, asked = serve(soon, says("a cat"))

    assert endpoint.captions(PICTURE) == ["a cat"]
    assert asked[1] - asked[0] > 0.5


def test_a_server_that_never_has_time_stops_the_run_and_its_reason_is_shown(serve):
    never = 429, {"Retry-After": "0.05"}, {"error": {"message": "quota\nexceeded"}}
    endpoint, _ = serve(never, patience=0.2)

    with pytest.raises(InputError, match=r"no answer \(HTTP 429 .*: quota exceeded\); start"):
        endpoint.captions(PICTURE)


def test_a_server_that_asks_for_an_hour_stops_the_run_at_once(serve):
    endpoint, asked = serve((503, {"Retry-After": "3600"}, {}))

    with pytest.raises(InputError, match="no answer"):
        endpoint.captions(PICTURE)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "images of 2 GB are too large", "type": "BadRequestError"}},
        {"message": "images of 2 GB are too large"},
        {"detail": "images of 2 GB are too large"},
        {"error": "images of 2 GB are too large"},
    ],
)
def test_a_refused_request_is_sent_once_and_says_why(serve, body):
    endpoint, asked = serve((400, {}, body), attempts=4)

    with pytest.raises(NoCaption, match=r"HTTP 400 Bad Request: images of 2 GB are too large,"):
        endpoint.captions(PICTURE)
    assert len(asked) == 1


def test_failures_in_a_row_stop_the_run(serve):
    endpoint, _ = serve(says("fine"), FAILS, failures=3, attempts=1)
    endpoint.captions(PICTURE)

    for _ in range(2):
        with pytest.raises(NoCaption, match="HTTP 500"):
            endpoint.captions(PICTURE)
    with pytest.raises(InputError, match=r"3 pictures in a row got no caption, the last: HTTP 500"):
        endpoint.captions(PICTURE)


def test_a_caption_ends_the_row(serve):
    answers = [FAILS, says("fine")] * 4
    endpoint, _ = serve(*answers, failures=2, attempts=1)

    for _ in range(4):
        with pytest.raises(NoCaption):
            endpoint.captions(PICTURE)
        assert endpoint.captions(PICTURE) == ["fine"]


def test_the_time_of_a_request_ends_though_bytes_still_come(serve):
    endpoint, _ = serve(says("a cat"), drip=0.05, timeout=0.3, attempts=1)
    begin = time.monotonic()

    with pytest.raises(InputError, match=r"no answer \(timed out after 0\.3 s\)"):
        endpoint.captions(PICTURE)
    assert time.monotonic() - begin < 2


# What is no caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("a cat that", finish_reason="length"), "cut at max_tokens"),
        (says("<think>a cat?"), "reasoning without an end"),
        (says("<think>a cat?</think> "), "is empty"),
        (says(None, message={"refusal": "not this"}), "the model refuses: not this"),
        (says("", finish_reason="content_filter"), "the model refuses: content_filter"),
        (says("I'm sorry, but I can't assist with that."), "the model refuses: I'm sorry"),
        (says("I\u2019m very sorry."), "the model refuses"),
        (says("I cannot describe people."), "the model refuses"),
        (says("抱歉, 我无法描述这张图片。"), "the model refuses"),
        (says(None), "holds no caption"),
        (says({"a": 1}), "holds no caption"),
    ],
)
def test_what_is_no_caption_is_told_apart(serve, answer, reason):
    endpoint, asked = serve(answer)

    with pytest.raises(NoCaption, match=reason):
        endpoint.captions(PICTURE)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ("<think>A cat?\nYes.</think>\n\na cat", "a cat"),
        ("A cat? Yes.</think>a cat", "a cat"),
        ("A sign says: I'm sorry.", "A sign says: I'm sorry."),
        ("I can see a cat.", "I can see a cat."),
    ],
)
def test_a_caption_is_what_follows_the_thought(serve, content, caption):
    endpoint, _ = serve(says(content, finish_reason="stop"))

    assert endpoint.captions(PICTURE) == [caption]
