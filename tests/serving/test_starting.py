"""What `emu3 serve` refuses before it reads any weight, and how many rows it takes."""

import pytest

from emu3_megatron.cli import main
from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.estimate import buffer_bytes, pool_bytes, weight_bytes
from emu3_megatron.serving.running import bind
from emu3_megatron.serving.sizing import MOST_ROWS, rows_that_fit

LARGE = ModelConfig(preset="emu3-8b")


def needed(rows: int, context: int) -> int:
    sizes = (pool_bytes, buffer_bytes)
    return weight_bytes(LARGE, "bf16") + sum(size(LARGE, "bf16", rows, context) for size in sizes)


def test_as_many_rows_as_fit_are_taken():
    memory = int(1.25 * needed(5, 8000)) + 1000

    assert rows_that_fit(LARGE, "bf16", 8000, memory) == 5
    assert rows_that_fit(LARGE, "bf16", 8000, 1 << 50) == MOST_ROWS


def test_rows_that_do_not_fit_are_refused_in_one_line():
    with pytest.raises(
        InputError, match=r"are needed for weights and 50 rows of 8,000 tokens, and"
    ):
        rows_that_fit(LARGE, "bf16", 8000, needed(49, 8000), rows=50)


def test_a_port_that_is_taken_is_refused():
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(InputError, match=f"--host 127.0.0.1 --port {port}: Address already"):
            bind("127.0.0.1", port)


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_other_hosts_need_a_key(capsys, monkeypatch, host):
    monkeypatch.delenv("EMU3_API_KEY", raising=False)

    said = refusal(capsys, "runs/none", "--host", host)

    assert said.startswith(f"emu3: --host {host}: others could call; give a key")


def test_an_empty_key_is_none(capsys, tmp_path):
    (tmp_path / "key").write_text("\n", encoding="utf-8")

    assert "an empty key" in refusal(capsys, "runs/none", "--api-key-file", str(tmp_path / "key"))


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert "pip install 'emu3-megatron[serve]'" in refusal(capsys, "runs/none")


def test_a_missing_checkpoint_is_named(capsys, tmp_path):
    assert str(tmp_path) in refusal(capsys, str(tmp_path))
