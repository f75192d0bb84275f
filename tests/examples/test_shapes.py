"""The pictures of examples/shapes: what captions say, what scores measure, the same again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "examples" / "shapes" / "shapes.py"


@pytest.fixture(scope="session")
def shapes():
    spec = importlib.util.spec_from_file_location("shapes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rules_score_how_vivid_a_picture_is(shapes):
    subject = shapes.SEEN[0]
    drawn = [shapes.draw(subject, vivid, np.random.default_rng(0)) for vivid in (0, 0.3, 0.6, 1)]

    for name in shapes.SCORES:
        found = [shapes.scores(image)[name] for image in drawn]
        assert found == sorted(found), name
        assert 0 <= found[0] < 3 < found[-1] <= 10, name


def test_a_pool_is_the_same_from_the_same_seed_and_shows_no_unseen_subject(shapes, tmp_path):
    rows = [
        list(shapes.write_pool(tmp_path / name, 20, 2, np.random.default_rng(seed)))
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    ]
    captions = {path.read_text(encoding="utf-8").strip() for path in tmp_path.rglob("*.txt")}

    assert json.dumps(rows[0]) == json.dumps(rows[1]) != json.dumps(rows[2])
    assert (tmp_path / "one" / "00007.png").read_bytes() == (
        tmp_path / "same" / "00007.png"
    ).read_bytes()
    assert len(shapes.UNSEEN) == 8
    assert not captions & {subject.caption for subject in shapes.UNSEEN}
