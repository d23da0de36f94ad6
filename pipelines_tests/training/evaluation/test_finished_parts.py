"""What is done is not done again, and only for the same key."""

import contextlib
import json

import torch

from training.evaluation.finished_parts import Kept


def counted(calls: list, value: float):
    def make():
        calls.append(value)
        return {"frames": torch.full((2,), value)}

    return make


def test_what_is_kept_is_made_once_for_each_key_and_range(tmp_path):
    calls = []
    for _ in range(2):
        kept = Kept(tmp_path / "kept")  # as a second run finds it
        assert kept.get({"seed": 0, "given": [0, 8]}, 0, 2, counted(calls, 1.0))["frames"].tolist() == [1.0, 1.0]
        kept.get({"given": [0, 8], "seed": 0}, 0, 2, counted(calls, 1.0))  # the order of a key's parts does not count
        kept.get({"seed": 1, "given": [0, 8]}, 0, 2, counted(calls, 2.0))
        kept.get({"seed": 0, "given": [0, 8]}, 2, 4, counted(calls, 3.0))
    assert calls == [1.0, 2.0, 3.0]
    keys = [json.loads(path.read_text()) for path in tmp_path.rglob("key.json")]
    assert {"seed": 1, "given": [0, 8]} in keys and len(keys) == 2


def test_an_interruption_leaves_nothing_half_done(tmp_path):
    kept = Kept(tmp_path)

    def interrupted():
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        kept.get({"seed": 0}, 0, 2, interrupted)
    assert list(tmp_path.rglob("*.safetensors")) == []
    calls = []
    kept.get({"seed": 0}, 0, 2, counted(calls, 1.0))
    assert calls == [1.0]


def test_a_damaged_file_is_made_again_and_said(tmp_path, capsys):
    kept, calls = Kept(tmp_path), []
    kept.get({"seed": 0}, 0, 2, counted(calls, 1.0))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert kept.get({"seed": 0}, 0, 2, counted(calls, 1.0))["frames"].tolist() == [1.0, 1.0]
    assert calls == [1.0, 1.0] and f"{path} cannot be read" in capsys.readouterr().out
