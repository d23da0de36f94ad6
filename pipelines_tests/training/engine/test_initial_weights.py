"""Models that are built on the meta device and filled: the same weights, with less memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines_tests.training.test_train_mardini import make_config
from training.engine.initial_weights import InitialWeights
from training.engine.models import build_models, make_models, model_arguments


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("more", [{}, {"conditions": {"action": 3}}, {"stem_channels": 16, "latent_skip": True}])
def test_weights_are_those_that_the_constructors_draw(more):
    arguments = model_arguments(make_config())
    arguments["transformer"] |= more
    torch.manual_seed(3)
    plain, after = build_models(arguments, "cpu"), torch.get_rng_state()
    initial = InitialWeights()
    with torch.device("meta"), initial:
        models = build_models(arguments, "meta")
    initial.name(models)
    models.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in models.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(3)
    initial.draw(models)
    expected = dict(plain.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in models.named_parameters())
    assert torch.equal(torch.get_rng_state(), after)  # whatever is drawn next is the same, too


def test_models_of_a_run_are_trainable_and_whole():
    models = make_models(make_config())
    assert set(models) == {"planner", "transformer", "head"}
    assert all(p.requires_grad and not p.is_meta and torch.isfinite(p).all() for p in models.parameters())


def measured(tmp_path: Path, **request) -> list[dict]:
    result = subprocess.run(
        [sys.executable, "-m", "pipelines_tests.training.engine.measured_models", str(tmp_path), json.dumps(request)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("layers", [2, pytest.param(21, marks=pytest.mark.slow)])  # 23 and 200 million parameters
def test_a_process_holds_its_shards_and_one_tensor(tmp_path, layers):
    """A whole model at any moment of building, reading a checkpoint or exporting would be twice the shards."""
    told = measured(tmp_path, processes=2, layers=layers)
    assert len(told) == 2
    for process in told:
        shards, largest = process["shards"], process["largest"]
        assert 0.45 * process["whole"] < shards < 0.55 * process["whole"]
        # Beside one tensor: Python's own memory, and what the allocator keeps of the tensors before.
        assert process["built"] < shards + largest + 2**24
        assert process["loaded"] < largest + 2**24
        assert process["exported"] < largest + 2**24
        assert process["same"]
