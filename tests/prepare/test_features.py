"""Feature files, as Emu3's prepare_data.py writes them, to shards."""

import json

import numpy as np
import pytest
import torch

from emu3_megatron.cli import main
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import captioned_image
from emu3_megatron.prepare.inspecting import write_page
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table


def codes_of(number):
    return np.random.default_rng(number).integers(0, 512, (2 + number, 3))


@pytest.fixture
def listed(tmp_path):
    """A function that writes feature files and their list, and returns its path."""

    def write(samples, prefix=None):
        (tmp_path / "feature").mkdir(exist_ok=True)
        (tmp_path / "list").mkdir(exist_ok=True)
        for name, sample in samples.items():
            path = tmp_path / "feature" / name
            path.write_bytes(sample) if isinstance(sample, bytes) else torch.save(sample, path)
        names = {"prefix": prefix or str(tmp_path / "feature"), "path_list": list(samples)}
        (tmp_path / "list" / "train.json").write_text(json.dumps(names), encoding="utf-8")
        return tmp_path / "list" / "train.json"

    return write


def sample(number, **values):
    return {"name": f"{number}", "images": codes_of(number), "texts": f"number {number}", **values}


def recipe_of(source, place, **section):
    values = {
        "out": place / "out",
        "model": "emu3-tiny",
        "features": {"source": source, **section},
        "packs": [{"context": 128, "kinds": ["features"]}],
        "run": {"executor": "local"},
    }
    return PrepareRecipe.model_validate(values)


def documents(recipe, manifest, vocabulary):
    (shard,) = manifest["kinds"]["features"]["shards"]
    store = TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
    return [store.document(i) for i in range(len(store))]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_feature_files_become_captioned_images(listed, tmp_path, vocabulary, make):
    samples = {f"{i}.pth": sample(i, images=make(codes_of(i))) for i in range(3)}
    recipe = recipe_of(listed(samples), tmp_path)

    manifest = prepare(recipe, ["features"])

    for i, document in enumerate(documents(recipe, manifest, vocabulary)):
        expected = captioned_image(vocabulary, f"number {i}", codes_of(i))
        assert document.tokens.tolist() == expected.tokens.tolist()
    assert manifest["packs"][0]["documents"] == 3
    write_page(recipe.out, tmp_path / "page.html", None, 3)
    assert "0.pth" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_files_of_numpy_1_are_read(listed, tmp_path):
    source = listed({"0.pth": sample(0)})
    path = tmp_path / "feature" / "0.pth"
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content, "written by numpy 2"
    torch.save(sample(0), path, _use_new_zipfile_serialization=False)
    renamed = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(renamed)

    assert prepare(recipe_of(source, tmp_path), ["features"])["kinds"]["features"]["kept"] == 1


class Runs:
    def __reduce__(self):
        return print, ("a stranger's code",)


BAD = {
    "no tensor": (sample(1, images="codes"), "no grid of codes: images is no tensor"),
    "codes of a clip": (sample(1, images=np.zeros((2, 2, 2), int)), "no grid of codes"),
    "codes that are no integers": (sample(1, images=np.zeros((2, 2))), "unreadable"),
    "tensors of floats": (sample(1, images=torch.zeros(2, 2)), "no grid of codes"),
    "no caption": (sample(1, texts=None), "no caption: texts is no text"),
    "another dictionary": ({"images": codes_of(1)}, "no feature file: it lacks images and texts"),
    "a tensor alone": (torch.zeros(2), "no feature file"),
    "codes of another codebook": (sample(1, images=codes_of(1) + 512), "lie outside the codebook"),
    "code to run": (sample(1, texts=Runs()), "unreadable: not a file of tensors and texts"),
    "no torch file": (b"tensors", "unreadable: not a file of tensors and texts"),
    "an empty file": (b"", "unreadable: not a file of tensors and texts"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_stops_the_run_or_is_set_aside(listed, tmp_path, capsys, bad, reason):
    source = listed({"0.pth": sample(0), "1.pth": bad, "2.pth": sample(2)})

    with pytest.raises(InputError, match=rf"feature/1\.pth: .*{reason}.*--skip-bad") as error:
        prepare(recipe_of(source, tmp_path), ["features"])
    assert "\n" not in str(error.value)
    manifest = prepare(recipe_of(source, tmp_path, skip_bad=True), ["features"])

    assert "stranger" not in capsys.readouterr().out
    assert (manifest["kinds"]["features"]["kept"]) == 2
    kept = [row["kept"] for row in read_table(tmp_path / "out" / "features.parquet")]
    assert kept == [True, False, True]
    with pytest.raises(InputError, match=rf"1\.pth: .*{reason}"):  # also when it is done
        prepare(recipe_of(source, tmp_path), ["features"])


def test_a_missing_file_is_named(listed, tmp_path):
    source = listed({"0.pth": sample(0)})
    (tmp_path / "feature" / "0.pth").unlink()

    with pytest.raises(InputError, match=r"0\.pth: unreadable: No such file"):
        prepare(recipe_of(source, tmp_path), ["features"])


def test_files_that_moved_are_found_by_their_folder(listed, tmp_path):
    source = listed({"0.pth": sample(0)}, prefix="/gone/feature")

    with pytest.raises(InputError, match=r"/gone/feature: no such folder.*features\.folder"):
        prepare(recipe_of(source, tmp_path), ["features"])
    recipe = recipe_of(source, tmp_path, folder=tmp_path / "feature")
    assert prepare(recipe, ["features"])["kinds"]["features"]["kept"] == 1


@pytest.mark.parametrize("text", ["{}", "[]", "text", '{"prefix": "a", "path_list": [1]}'])
def test_another_file_is_no_list(tmp_path, text, capsys):
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    paths = ["--source", str(tmp_path / "train.json"), "--out", str(tmp_path / "out")]

    with pytest.raises(SystemExit):
        main(["prepare", "features", *paths, "model=emu3-tiny", "run.executor=local"])

    (line,) = capsys.readouterr().err.splitlines()
    assert "train.json: no list of feature files" in line
