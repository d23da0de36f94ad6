import pytest
import torch

from diffusers_mardini import hardware


CPU = torch.device("cpu")


def test_auto_dtype_is_bfloat16_only_where_the_hardware_multiplies_it(monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16_units", lambda device: True)
    assert hardware.choose_dtype("auto", CPU)[0] == torch.bfloat16
    monkeypatch.setattr(hardware, "has_bfloat16_units", lambda device: False)
    assert hardware.choose_dtype("auto", CPU)[0] == torch.float32
    assert hardware.choose_dtype("float16", CPU)[0] == torch.float16


@pytest.mark.parametrize("has_units", [True, False])
def test_training_autocasts_where_sampling_would_compute_in_bfloat16(monkeypatch, has_units):
    monkeypatch.setattr(hardware, "has_bfloat16_units", lambda device: has_units)
    assert hardware.uses_bfloat16("auto", CPU) is has_units
    assert hardware.uses_bfloat16("bf16", CPU) and not hardware.uses_bfloat16("no", CPU)
