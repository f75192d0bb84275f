"""Inputs from and outputs to S3, as moto's server and s3fs speak it, by processes and by Ray."""

import urllib.request

import numpy as np
import pytest
from PIL import Image

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.stores import access

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(monkeypatch):
    """A client of an empty S3 server, which everything that starts from now on speaks to."""
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    # All servers of one process have the same buckets.
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"))
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="bucket")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / f"photo{number}.png"
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST).save(path)
        path.with_suffix(".txt").write_text(f"number {number}", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path, tokenizer):
    """A function that prepares photos; returns the shards by their names."""
    tokenizer.save(tmp_path / "tokenizer")

    def run(source, out="out", executor="processes", upload=None):
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "tokenizer": tmp_path / "tokenizer",
                "upload": upload,
                "images": {
                    "source": source,
                    "min_side": 32,
                    "min_quality": 0,
                    "ocr": False,
                    "area": 1536,
                },
                "packs": [{"context": 256, "kinds": ["images"]}],
                "run": {"executor": executor, "task_items": 2, "workers": 2},
            }
        )
        prepare(recipe, ["images"])
        return {path.name: path.read_bytes() for path in (recipe.out / "shards").iterdir()}

    return run


def send(s3, folder, prefix):
    for path in folder.iterdir():
        s3.upload_file(str(path), "bucket", f"{prefix}/{path.name}")


def keys(s3, prefix):
    listed = s3.list_objects_v2(Bucket="bucket", Prefix=prefix)
    return {found["Key"].removeprefix(f"{prefix}/") for found in listed.get("Contents", ())}


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_from_a_bucket_to_a_bucket(s3, run, photos, tmp_path, executor):
    send(s3, photos, "photos")
    made = run("s3://bucket/photos", executor=executor, upload="s3://bucket/out")
    assert made == run(photos, out="of a folder")
    assert {f"shards/{name}" for name in made} | {"manifest.json", "files.json"} <= keys(s3, "out")
    before = {k: s3.head_object(Bucket="bucket", Key=f"out/{k}")["ETag"] for k in keys(s3, "out")}
    run("s3://bucket/photos", executor=executor, upload="s3://bucket/out")
    assert before.keys() == keys(s3, "out")


def test_data_of_another_run_stay(s3, run, photos):
    s3.put_object(Bucket="bucket", Key="out/manifest.json", Body=b"{}")
    with pytest.raises(InputError, match="another run committed other data there"):
        run(photos, upload="s3://bucket/out")
    assert keys(s3, "out") == {"manifest.json"}


def test_no_bucket(s3, run, photos):
    with pytest.raises(InputError, match="no such") as caught:
        run("s3://nowhere/photos")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such bucket"):
        run(photos, upload="s3://nowhere/out")


def test_no_credentials(s3, run, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no credentials; give"):
        run("s3://bucket/photos")


def test_nobody_there(s3, run, monkeypatch):
    monkeypatch.setattr(access, "_PAUSE", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        run("s3://bucket/photos")
