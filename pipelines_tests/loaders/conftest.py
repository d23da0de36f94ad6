"""What the tests of LoRA begin with."""

import pytest

from pipelines_tests.loaders.adapters import run, save_adapter
from pipelines_tests.tiny_pipeline import tiny_pipeline


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora")
    save_adapter(path, alpha=8)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other")
    save_adapter(path, seed=1)
    return path


@pytest.fixture(scope="module")
def base():
    return run(tiny_pipeline())
