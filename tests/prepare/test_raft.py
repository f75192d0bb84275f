"""RAFT over random weights: what torchvision makes of the frames by its own transforms."""

import sys

import numpy as np
import pytest
import torch

from emu3_megatron.errors import InputError
from emu3_megatron.prepare.scores.flow import flow_of


def frames(height, width):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    models = pytest.importorskip("torchvision.models.optical_flow", exc_type=ImportError)
    torch.manual_seed(0)
    network = models.raft_large().eval()
    path = tmp_path_factory.mktemp("raft") / "raft.pth"
    torch.save(network.state_dict(), path)
    return path, network, models.Raft_Large_Weights.C_T_SKHT_V2.transforms()


def test_the_score_is_the_mean_flow_of_torchvisions_raft(weights):
    path, network, transforms = weights
    pixels = [torch.from_numpy(f[:128]).permute(2, 0, 1)[None] for f in frames(134, 200)]

    name, flow = flow_of(path, "cpu")

    with torch.no_grad():
        expected = network(*transforms(*pixels))[-1].norm(dim=1).mean() / 128
    assert name == "raft-large"
    assert flow(*frames(134, 200)) == pytest.approx(float(expected), rel=1e-5)


def test_small_frames_are_enlarged(weights):
    _, flow = flow_of(weights[0], "cpu")

    assert np.isfinite(flow(*frames(48, 64)))


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_other_files_are_refused(weights, tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)

    with pytest.raises(InputError, match=r"other\.pth: not the weights of raft_large"):
        flow_of(tmp_path / "other.pth", "cpu")


def test_without_torchvision_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)

    with pytest.raises(InputError, match=r"clips\.raft: RAFT needs .*pip install torchvision"):
        flow_of(tmp_path / "raft.pth", "cpu")
