"""What a layer of Emu3-8B moves and keeps, counted without a GPU, within its limits."""

from support import triton_interpreter  # noqa: F401

# isort: split
import json
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def layer_traffic(mesh, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import layer_traffic

    return layer_traffic


def test_bytes_moved_and_kept_by_a_layer(layer_traffic):
    """Bytes a token and hidden unit outside products and attention; by Megatron-core 539 and 60."""
    layer = layer_traffic.count("triton")
    assert layer["moved"] <= 160
    assert layer["kept"] <= 37


def test_what_selective_recompute_frees_and_costs(layer_traffic):
    none, selective = (layer_traffic.count("triton", mode) for mode in ("none", "selective"))
    norm, activation = 2, 2 * 3.5  # bytes in bf16; the MLP is 3.5 times as wide
    assert none["kept"] - selective["kept"] == pytest.approx(2 * norm + activation, abs=0.01)
    assert selective["moved"] - none["moved"] == pytest.approx(2 * 2 * norm + 3 * activation, 0.01)
    assert selective["attention_forwards"] == 1


def test_the_committed_counts_are_these(layer_traffic):
    committed = json.loads((BENCHMARKS / "results/layer_traffic.json").read_text(encoding="utf-8"))
    rows = {(row["case"], row["implementation"]): row for row in committed["rows"]}
    found = layer_traffic.count("triton", "selective")
    assert found == {name: rows["selective", "triton"][name] for name in found}
