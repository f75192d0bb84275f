"""/v1/videos: drawn behind the call, polled, downloaded as MP4."""

import time

import av
import pytest
from support.serving import make_service, running

from emu3_megatron.serving.bounds import Bounds

PATH = "/v1/videos"
# 2 latent frames, 8 frames of pixels.
SMALL = {"prompt": "a cat", "size": "32x16", "seconds": "1", "fps": 8, "seed": 1}


def ended(client, name: str) -> dict:
    for _ in range(1000):
        video = client.get(f"{PATH}/{name}").json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.02)
    raise AssertionError("it never ended")


def test_a_video_is_made_polled_and_downloaded(client, tmp_path):
    created = client.post(PATH, json=SMALL).json()
    assert created["object"] == "video"
    assert created["status"] == "queued"

    video = ended(client, created["id"])

    assert video["status"] == "completed"
    assert (video["progress"], video["size"], video["seconds"]) == (100, "32x16", "1")
    response = client.get(f"{PATH}/{created['id']}/content")
    assert response.headers["content-type"] == "video/mp4"
    (tmp_path / "clip.mp4").write_bytes(response.content)
    with av.open(tmp_path / "clip.mp4") as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (8, 32, 16)
    assert client.delete(f"{PATH}/{created['id']}").json()["deleted"]
    assert client.get(f"{PATH}/{created['id']}").status_code == 404


def test_a_form_is_taken_as_well(client):
    fields = {name: (None, str(value)) for name, value in SMALL.items()}
    created = client.post(PATH, files=fields).json()

    assert created["seconds"] == "1"
    assert ended(client, created["id"])["status"] == "completed"


def test_an_unfinished_video_has_no_content(client):
    created = client.post(PATH, json={**SMALL, "seconds": "3"}).json()

    response = client.get(f"{PATH}/{created['id']}/content")

    assert response.status_code == 409
    client.delete(f"{PATH}/{created['id']}")


def test_only_so_many_are_kept(decoder, tokenizer):
    with running(make_service(decoder, tokenizer, Bounds(videos=2))) as client:
        names = [client.post(PATH, json=SMALL).json()["id"] for _ in range(2)]
        for name in names:
            ended(client, name)
        third = client.post(PATH, json={**SMALL, "seconds": "3"}).json()

        listed = client.get(PATH).json()["data"]
        assert [video["id"] for video in listed] == [third["id"], names[1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": "0"}, "seconds: give more than 0"),
        ({"seconds": "many"}, "seconds: give more than 0"),
        ({"seconds": "nan"}, "seconds: give more than 0"),
        ({"seconds": "60"}, "the server's context is 400"),
        ({"input_reference": "x"}, "input_reference: not supported"),
        ({"size": "16x15"}, "multiples of 8"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused_by_its_name(client, fields, message):
    response = client.post(PATH, json={**SMALL, **fields})

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_files_in_a_form_are_refused(client):
    files = {"prompt": (None, "x"), "input_reference": ("a.png", b"x", "image/png")}

    response = client.post(PATH, files=files)

    assert response.status_code == 400
    assert "files are not supported" in response.json()["error"]["message"]
