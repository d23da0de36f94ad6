"""Keep every test away from the network, and from what the test before it chose for the whole process."""

import os
import sys

import pytest


# What is not here counts as missing at once, instead of after minutes; huggingface_hub reads it once, when imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def usual_attention_backend():
    """Put the usual backend back: setting one on a model sets it for the process (diffusers)."""
    yield
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatch is not None:
        dispatch._AttentionBackendRegistry.set_active_backend(dispatch.AttentionBackendName.NATIVE)


@pytest.fixture(scope="session", autouse=True)
def manifests_of_evaluations(tmp_path_factory):
    """Keep the manifests of clips that tests evaluate out of the working folder."""
    clips = sys.modules.get("training.data.clips")  # test modules have been imported
    if clips is not None:
        clips.MANIFESTS = tmp_path_factory.getbasetemp() / "manifests"
