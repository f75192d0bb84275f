"""Traces of chosen steps and ranks."""

import gzip
import json
import re
import threading
import time
import urllib.request

import pytest
from support.faults import run_job
from support.ports import free_port
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.cli import main, profile


def test_chosen_steps_of_chosen_ranks_are_written_and_their_command_is_printed(tmp_path):
    run = {"steps": 3, "profile": {"steps": [1, 3], "ranks": [1]}}
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path / "run", run=run)

    first, second = run_job(recipe, ranks=2)

    assert (first.code, second.code) == (0, 0), first.said + second.said
    names = [f"step-0000000{step}-rank-00001.json.gz" for step in (1, 3)]
    files = sorted((tmp_path / "run" / "profiles").iterdir())
    assert [path.name for path in files] == names
    printed = re.findall(r"emu3 inspect profile (\S+)", second.said)
    assert printed == [str(path) for path in files]
    assert "inspect profile" not in first.said
    trace = json.loads(gzip.decompress(files[0].read_bytes()))
    operators = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::mm", "aten::embedding"} & operators


def test_a_trace_is_served_to_the_viewer_until_it_has_loaded_it(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open_new_tab", opened.append)
    (tmp_path / "a.json.gz").write_bytes(b"trace")
    port = free_port()
    serving = threading.Thread(target=profile.show, args=(tmp_path / "a.json.gz", port, 30))
    serving.start()
    while not opened:
        time.sleep(0.01)

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/a.json.gz") as answer:
        assert answer.read() == b"trace"
        assert answer.headers["Access-Control-Allow-Origin"] == "https://ui.perfetto.dev"
    serving.join(30)

    assert not serving.is_alive()
    assert opened[0].startswith("https://ui.perfetto.dev/#!/?url=http")


def test_a_profile_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "profile", str(tmp_path / "none.json.gz")])

    assert "none.json.gz: no such profile; a run with run.profile" in capsys.readouterr().err
