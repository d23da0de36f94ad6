"""Keep every test away from the network: what is not here counts as missing at once, instead of after minutes."""

import os

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported, which reads it once


@pytest.fixture
def backends():
    """Setting an attention backend on one model sets it for the process (diffusers): afterwards, the one before."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName(before))
