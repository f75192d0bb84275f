"""PyPI's vbench finds every clip of an evaluation of its own prompts.

vbench asks for old versions of many packages, to compute scores with. Finding files takes none of
them: it is installed by itself, and two modules that it imports are stand-ins here.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from emu3_megatron.evaluation.suites import SUITES
from emu3_megatron.evaluation.suites.place import Place

pytestmark = pytest.mark.slow


@pytest.fixture
def vbench(monkeypatch):
    for name in ("decord", "torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    import vbench

    return vbench


def test_every_clip_is_found_by_vbench_itself(tmp_path, vbench):
    suite = SUITES["vbench"]
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    plan = suite.plan([info], None)
    place = Place(tmp_path / "out", suite)
    place.begin(plan, 0, {})
    for file in plan.files:
        written = place.work / "clip.mp4"
        written.write_bytes(b"a clip")
        place.keep(written, file)
    place.end()

    scorer = vbench.VBench("cpu", str(info), str(tmp_path / "scores"))
    dimensions = scorer.build_full_dimension_list()
    found = scorer.build_full_info_json(str(place.scored), "ours", dimensions)

    records = json.loads(Path(found).read_text(encoding="utf-8"))
    assert len(records) == 946
    assert all(len(record["video_list"]) == 5 for record in records)
    read = {vbench.utils.get_prompt_from_filename(str(path)) for path in place.scored.iterdir()}
    assert read == {record["prompt_en"] for record in records}
    assert len(plan.files) == 6220  # 75 prompts of 25, 869 of 5; two prompts stand there twice
