"""What clients may not do: fetch, open, flood, stall, or learn of the server's inside."""

import io
import json
import socket
import struct
import time
import zlib
from contextlib import contextmanager, suppress

import pytest
from PIL import Image
from support.serving import asked, data_url, make_service, png, running, shown, wait_until

from emu3_megatron.serving.bounds import Bounds

CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"


def refused(response) -> str:
    """The message of a refusal that says nothing of the inside."""
    text = response.text
    assert 400 <= response.status_code < 500, text
    for inside in ("/work", "site-packages", "Traceback", "0x", "PIL", "torch", "cannot identify"):
        assert inside not in text
    return response.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/cat.png",
        "https://example.com/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../cat.png",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml,<svg/>",
        "",
    ],
)
def test_nothing_is_fetched_or_opened(client, url):
    message = refused(
        client.post(
            CHAT, json={"messages": asked({"type": "image_url", "image_url": {"url": url}})}
        )
    )

    assert message.endswith("give the image itself, as data:image/png;base64,…")


def test_what_is_no_base64_is_refused(client):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!!"}}

    assert "not base64" in refused(client.post(CHAT, json={"messages": asked(part)}))


def huge(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a raster of any size."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (8_000, 8_000), (2**31 - 1, 1)])
def test_a_tiny_file_with_a_huge_raster_is_refused_by_its_header(client, size):
    begun = time.monotonic()

    message = refused(client.post(CHAT, json={"messages": asked(shown(huge(*size)))}))

    assert "an image has 40,000,000 pixels at most" in message or "not a readable" in message
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        png()[:60],
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        huge(64, 64),
    ],
    ids=["empty", "text", "signature", "cut", "EPS", "without pixels"],
)
def test_damaged_images_are_refused_in_our_words(client, content):
    message = refused(client.post(CHAT, json={"messages": asked(shown(content))}))

    assert message == "messages.0.content.0.image_url.url: not a readable image"


def test_odd_sizes_do_not_hurt(client):
    narrow, single = png(4, 40), png(1, 1)

    assert "narrower than 1:5" in refused(
        client.post(CHAT, json={"messages": asked(shown(narrow))})
    )
    body = {"messages": asked(shown(single)), "max_tokens": 2}
    assert client.post(CHAT, json=body).is_success


def test_animations_show_one_frame(client):
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(100)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])

    body = {"messages": asked(shown(file.getvalue(), "gif")), "max_tokens": 2}
    usage = client.post(CHAT, json=body).json()["usage"]

    assert usage["prompt_tokens_details"]["image_tokens"] == 13


def test_images_are_counted(client):
    message = refused(client.post(CHAT, json={"messages": asked(*[shown(png())] * 17)}))

    assert message == "messages: 16 images at most"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800", "size": "bad"}',
    ],
    ids=lambda content: repr(content[:12]),
)
def test_bodies_that_are_no_object_are_refused(client, content):
    response = client.post(IMAGES, content=content, headers={"content-type": "application/json"})

    assert refused(response)


def test_other_kinds_of_bodies_are_refused(client):
    """A page of any site can send these through a browser, without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = client.post(IMAGES, content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415


def test_other_names_of_this_machine_are_refused(client):
    response = client.get("/v1/models", headers={"host": "evil.example:8000"})

    assert response.status_code == 403


def test_pages_of_other_sites_are_refused(client):
    """A form is sent by a browser without asking first."""
    headers = {"origin": "http://evil.example"}

    response = client.post("/v1/videos", files={"prompt": (None, "x")}, headers=headers)

    assert response.status_code == 403
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.get("/v1/models", headers=own).is_success


def test_unknown_paths_and_methods_have_the_same_shape(client):
    for response in (client.get("/v1/files"), client.delete("/v1/models")):
        assert refused(response) == "there is no such path or method"


@contextmanager
def connected(client):
    """A raw connection."""
    url = client.base_url
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        yield connection


def head(path: str, *lines: str) -> bytes:
    common = ["Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join([f"POST {path} HTTP/1.1", *common, "", ""]).encode()


@pytest.fixture(scope="module")
def strict(decoder, tokenizer):
    """A server with little patience."""
    bounds = Bounds(
        body=10_000,
        bodies=25_000,
        connections=40,
        head_seconds=0.5,
        body_seconds=0.5,
        stuck_seconds=0.5,
        quiet_seconds=0.05,
    )
    with running(make_service(decoder, tokenizer, bounds, context=8000)) as client:
        yield client


def status_of(connection) -> int:
    return int(connection.recv(4096).split()[1])


def test_a_body_over_the_limit_is_refused_by_its_length_alone(strict):
    with connected(strict) as connection:
        connection.sendall(head(IMAGES, "Content-Length: 20000"))

        assert status_of(connection) == 413


def test_a_body_over_the_limit_is_refused_while_it_is_read(strict):
    with connected(strict) as connection:
        connection.sendall(head(IMAGES, "Transfer-Encoding: chunked"))
        piece = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
        connection.sendall(piece * 3)  # and no end

        assert status_of(connection) == 413


def test_bodies_are_bounded_together(strict):
    with connected(strict) as first, connected(strict) as second, connected(strict) as third:
        for one in (first, second, third):
            one.sendall(head(IMAGES, "Content-Length: 9999") + b" " * 9998)

        assert status_of(third) == 429 or 429 in (status_of(first), status_of(second))


def test_a_body_that_comes_too_slowly_is_refused(strict):
    with connected(strict) as connection:
        connection.sendall(head(IMAGES, "Content-Length: 100") + b"{")

        assert status_of(connection) == 408


def test_a_call_that_never_begins_loses_its_connection(strict):
    for sent in (b"", b"POST /v1/ima", b"GET /health HTTP/1.1\r\nHost: local"):
        with connected(strict) as connection:
            connection.sendall(sent)
            begun = time.monotonic()
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
            assert time.monotonic() - begun < 5


def test_connections_opened_and_left_keep_nobody_out(strict):
    left = [
        socket.create_connection((strict.base_url.host, strict.base_url.port)) for _ in range(300)
    ]
    try:
        for _ in range(5):
            assert strict.get("/health").is_success
    finally:
        for one in left:
            one.close()


def test_who_reads_nothing_loses_the_connection(strict, decoder):
    """Pictures are large: what nobody reads fills the buffers."""
    body = {"prompt": "a", "size": "512x512", "n": 1, "stream": True, "partial_images": 128}
    content = json.dumps({**body, "guidance": 1}).encode()
    with connected(strict) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(IMAGES, f"Content-Length: {len(content)}") + content)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        running_ = lambda: strict.get("/metrics").text.split("num_requests_running{", 1)[1]
        wait_until(lambda: running_().split()[1] == "0.0")


def test_a_quiet_stream_is_kept_alive(strict):
    body = {"prompt": "a", "size": "256x256", "stream": True, "guidance": 1}
    with strict.stream("POST", IMAGES, json=body) as response:
        comments = [line for line in response.iter_lines() if line.startswith(":")]

    assert comments[:2] == [": keep-alive"] * 2


@pytest.fixture(scope="module")
def keyed(decoder, tokenizer):
    with running(make_service(decoder, tokenizer, key="s3cret")) as client:
        yield client


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "Bearer s3cret x", "Bearer é"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenizer_info", "/v1/videos"])
def test_without_the_key_only_health_answers(keyed, path, given):
    headers = {} if given is None else {"authorization": given.encode()}

    response = keyed.get(path, headers=headers)

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert keyed.get("/health").is_success


def test_the_key_is_checked_before_the_body_is_read(keyed):
    with connected(keyed) as connection:
        connection.sendall(head(IMAGES, "Content-Length: 1000000"))

        assert status_of(connection) == 401


def test_with_the_key_calls_are_served_under_any_name(keyed):
    headers = {"authorization": "Bearer s3cret", "host": "gpu7.example"}

    assert keyed.get("/v1/models", headers=headers).is_success


def test_an_error_inside_tells_nothing(client, service, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("/secret/path at 0x7f00")

    monkeypatch.setattr(service, "check_model", fail)

    response = client.post(IMAGES, json={"prompt": "x"})

    assert response.status_code == 500
    assert response.json()["error"]["message"] == "internal error"
    assert "secret" not in response.text


def test_data_urls_are_taken(client):
    body = {"messages": asked({"type": "image_url", "image_url": {"url": data_url(png())}})}

    assert client.post(CHAT, json={**body, "max_tokens": 2}).is_success
