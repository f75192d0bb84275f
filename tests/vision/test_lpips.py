"""LPIPS beside its authors' package, with random features in torchvision's layout.

torchvision is needed neither here nor by us: `features_of` builds what its `vgg16().features` and
`alexnet().features` are, and stands in for them. The heads are the published ones.
"""

import hashlib
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchmetrics
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from emu3_megatron.errors import InputError
from emu3_megatron.vision.lpips import NETWORKS, Lpips, normalised

HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
SHORT = {"vgg16": "vgg", "alexnet": "alex"}


def vgg16():
    layers, before = [], 3
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if channels:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


def features_of(network):
    """Random weights that keep the size of the features from layer to layer."""
    torch.manual_seed(0)
    features = {"vgg16": vgg16, "alexnet": alexnet}[network]()
    for conv in (layer for layer in features if isinstance(layer, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight)
        nn.init.normal_(conv.bias, 0, 0.1)
    return features


def file_of(folder, state, name="weights.pth"):
    """Returns the path, and the hash that a user names to have it accepted."""
    path = folder / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def state_of(network):
    return {f"features.{name}": x for name, x in features_of(network).state_dict().items()}


def load(network, folder, name="weights.pth"):
    path, digest = file_of(folder, state_of(network), name)
    return Lpips.load(path, HEADS / f"{SHORT[network]}.pth", [digest])


@pytest.fixture(scope="module", params=["vgg16", "alexnet"])
def network(request):
    return request.param


@pytest.fixture(scope="module")
def lpips(network, tmp_path_factory):
    return load(network, tmp_path_factory.mktemp(network))


def pairs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    one = torch.rand(2, 3, 32, 32, generator=generator, dtype=dtype) * 2 - 1
    noise = torch.randn(2, 3, 32, 32, generator=generator, dtype=dtype)
    return one, (one + 0.3 * noise).clamp(-1, 1)


def gradient_of(distance, one, other):
    other = other.clone().requires_grad_()
    distance(one, other).sum().backward()
    return other.grad


def test_torchmetrics_copy_of_the_package_agrees(lpips, network, monkeypatch):
    monkeypatch.setattr(
        torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: features_of(net)
    )
    theirs = torchmetrics_lpips._LPIPS(net=SHORT[network], pnet_rand=True)

    check_agreement(lpips, theirs)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lpips") is None, reason="make test-slow installs lpips")
def test_the_package_itself_agrees(lpips, network, monkeypatch):
    models = types.ModuleType("torchvision.models")
    for name in ("vgg16", "alexnet"):
        of = lambda pretrained, name=name: types.SimpleNamespace(features=features_of(name))
        setattr(models, name, of)
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    from lpips import LPIPS

    check_agreement(lpips, LPIPS(net=SHORT[network], pnet_rand=True, verbose=False))


def check_agreement(lpips, theirs):
    one, other = pairs()
    distances = lpips(one, other)

    assert (distances > 0.01).all()
    torch.testing.assert_close(distances, theirs(one, other).flatten(), rtol=1e-4, atol=0)
    ours, expected = (gradient_of(distance, one, other) for distance in (lpips, theirs))
    assert (ours - expected).norm() < 1e-3 * expected.norm()


def test_gradient_is_that_of_finite_differences(network, tmp_path):
    """Along random directions: each is a sum over all pixels."""
    lpips = load(network, tmp_path).double()
    one, other = (pixels[:1] for pixels in pairs(torch.float64))
    gradient = gradient_of(lpips, one, other)

    for seed in range(2):
        direction = torch.randn(
            other.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        ahead, behind = (lpips(one, other + step * direction).sum() for step in (1e-6, -1e-6))
        assert (gradient * direction).sum().item() == pytest.approx(
            ((ahead - behind) / 2e-6).item(), rel=1e-4
        )


def test_bug_1_the_mode_of_a_parent_changes_nothing(lpips):
    parent = nn.Sequential(lpips)
    distances = []
    for mode in (True, False):
        parent.train(mode)
        distances.append(lpips(*pairs()))

    assert torch.equal(*distances)
    assert not any(isinstance(module, nn.Dropout) for module in parent.modules())


def test_bug_2_the_gradient_is_finite_where_features_are_zero():
    """It is NaN by the paper's code, there where no ReLU happens to cut it off."""
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)

    normalised(features).sum().backward()

    assert features.grad.isfinite().all()


def test_bug_2_an_image_beside_itself_has_no_gradient(lpips):
    one, _ = pairs()

    assert gradient_of(lpips, one, one).abs().max() == 0


def test_bug_3_pixels_of_minus_1_to_1_become_those_of_imagenet(lpips):
    """Its mean and deviation are of pixels in [0, 1]."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels = pairs()[0]

    ours = (pixels - lpips.shift) / lpips.scale
    torch.testing.assert_close(ours, ((pixels + 1) / 2 - mean) / deviation, rtol=0, atol=1e-5)


def test_bug_4_heads_under_another_name_are_refused(tmp_path):
    path, digest = file_of(tmp_path, state_of("alexnet"))
    found = torch.load(HEADS / "alex.pth", map_location="cpu", weights_only=True)
    renamed = {name.replace("model.1", "model.0"): x for name, x in found.items()}
    heads, other = file_of(tmp_path, renamed, "heads.pth")

    with pytest.raises(InputError, match=r"heads.pth: lin0.model.1.weight: no such tensor"):
        Lpips.load(path, heads, [digest, other])


def test_heads_of_another_network_are_refused(tmp_path):
    path, digest = file_of(tmp_path, state_of("alexnet"))

    with pytest.raises(InputError, match=r"lin1.model.1.weight: \[1, 128, 1, 1\], where \[1, 192"):
        Lpips.load(path, HEADS / "vgg.pth", [digest])


def test_an_unknown_hash_is_refused_unless_it_is_named(tmp_path):
    path, digest = file_of(tmp_path, state_of("alexnet"))

    with pytest.raises(InputError, match=rf"weights.pth: sha256 {digest} is of none of vgg16-397"):
        Lpips.load(path, HEADS / "alex.pth")


def test_published_files_are_known_by_the_digits_in_their_names():
    """torchvision names a file by the beginning of its hash. The heads are the real ones."""
    for network, short in SHORT.items():
        (weights, digest), (heads, of_heads) = NETWORKS[network].published.items()
        assert weights.removesuffix(".pth").endswith(digest[:8])
        assert hashlib.sha256((HEADS / heads).read_bytes()).hexdigest() == of_heads
        assert heads == f"{short}.pth"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "damaged or not a file of weights"),
        ({"features.0.weight": torch.zeros(64, 3, 7, 7)}, "neither VGG16 nor AlexNet"),
        ([1, 2], "not a state dict"),
    ],
)
def test_what_is_no_network_is_refused(content, message, tmp_path):
    path, digest = file_of(tmp_path, content)
    if isinstance(content, bytes):
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()

    with pytest.raises(InputError, match=message):
        Lpips.load(path, HEADS / "alex.pth", [digest])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Lpips.load(tmp_path / "gone.pth", HEADS / "alex.pth")


def test_safetensors_are_read_as_pth(tmp_path):
    one, other = (load("alexnet", tmp_path, f"weights.{end}") for end in ("pth", "safetensors"))

    assert torch.equal(one(*pairs()), other(*pairs()))
    assert one.name == "lpips_alexnet"
    assert one.hash.endswith("+df73285e")


def test_nothing_of_it_is_trained_or_saved(lpips):
    assert not list(lpips.parameters())
    assert not lpips.state_dict()


def test_it_is_fp32_under_autocast(lpips):
    with torch.autocast("cpu", torch.bfloat16):
        within = lpips(*pairs())

    assert torch.equal(within, lpips(*pairs()))
