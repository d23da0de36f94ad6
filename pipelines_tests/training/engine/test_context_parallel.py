"""Processes that share the tokens of a window learn what one process does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.models import attention_dispatch

from pipelines_tests.training.test_plan import make_config
from training.engine.context_parallel import refuse_without_exchange
from training.engine.feasibility import find_problems
from training.engine.layout import Layout


def test_two_processes_with_half_the_tokens_each_have_the_same_gradients(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "pipelines_tests.training.engine.shared_tokens", str(tmp_path)],
        cwd=Path(__file__).parents[3], capture_output=True, text=True,
    )  # fmt: skip
    logs = [(tmp_path / f"log-{rank}.txt").read_text() for rank in range(2)]
    assert result.returncode == 0, result.stderr + "".join(logs)
    assert all(log.count("is the same") == 4 for log in logs)


def test_tokens_and_heads_that_cannot_be_shared_are_refused_with_the_numbers_that_can():
    config = make_config()  # 64x64 pixels: 4 x 5 tokens of the planner, 8 x 9 of the transformer; two heads each

    def told(context):
        return [problem.text for problem in find_problems(config, False, Layout(shards=context, context=context))]

    assert told(1) == told(2) == []
    planner, transformer = told(4)
    assert "4 processes (cp_size) cannot share the 20 tokens of a frame and the 2 heads of the planner" in planner
    assert "transformer equally; use a number that divides 2" in transformer


def test_a_diffusers_without_the_exchange_is_refused_only_where_tokens_are_shared(monkeypatch):
    monkeypatch.delattr(attention_dispatch, "SeqAllToAllDim")
    spec = importlib.util.find_spec("diffusers_mardini.models.attention")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # a second one, which is imported without it
    refuse_without_exchange(Layout(shards=4))
    with pytest.raises(
        ValueError, match="which has no `SeqAllToAllDim`; install diffusers 0.42, or set .*_cp_size to 1"
    ):
        refuse_without_exchange(Layout(shards=4, context=2))
