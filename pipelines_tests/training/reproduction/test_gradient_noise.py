"""Test how steadily runs are said to train, by their gradient norms."""

import json

import pytest
import torch

from training.config.layers import load_config
from training.reproduction.gradient_noise import main, steadiness


def test_a_falling_norm_is_no_noise_and_a_spike_is_one():
    falling = [2 * 0.99**i for i in range(100)]
    calm = steadiness(falling, [1.0] * 90 + [0.5] * 10, limit=1.0)
    assert calm.noise < 0.05 and calm.spikes == 0 and calm.loss == 0.5
    assert calm.clipped == pytest.approx(59 / 90) and calm.largest == falling[10]
    spiky = steadiness([*falling[:50], 5.0, *falling[51:]], [1.0] * 100, limit=1.0)
    assert spiky.spikes == pytest.approx(1 / 90) and spiky.largest == 5.0


def test_noise_is_the_deviation_of_steps_and_not_the_fall_of_the_warm_up():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.2
    norms = noise.exp().tolist()
    assert steadiness(norms, [1.0] * 1000, limit=1.0).noise == pytest.approx(0.2, abs=0.02)
    warmed = [20.0, 12.0, 7.0, 4.0, 2.5, 1.6, *norms[6:]]
    assert steadiness(warmed, [1.0] * 1000, limit=1.0).noise == pytest.approx(0.2, abs=0.02)
    assert steadiness(warmed, [1.0] * 1000, limit=1.0).largest == max(norms[10:])


def test_a_run_that_explodes_in_its_last_lines_is_seen_to():
    found = steadiness([1.0] * 60 + [3.0**i for i in range(1, 10)], [1.0] * 69, limit=1.0)
    assert found.largest == 3.0**9 and found.spikes >= 9 / 59 and found.clipped == pytest.approx(9 / 59)


def test_seeds_become_their_mean_and_range_on_the_page(tmp_path):
    config = load_config("training/configs/reproduction/full_attention.yaml")
    for name, norm in (("a-1", 1.0), ("a-2", 3.0)):
        (tmp_path / name).mkdir()
        lines = [{"windows_seen": 16 * i, "global_step": i, "grad_norm": norm, "loss": 0.5} for i in range(1, 5)]
        lines.append({"windows_seen": 80, "global_step": 5, "grad_norm": "nan", "loss": "nan"})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "config.json").write_text(config.model_dump_json())
    page = tmp_path / "page.md"
    page.write_text("<!-- g: begin -->\n<!-- g: end -->\n")
    main([f"a={tmp_path}/a-1,{tmp_path}/a-2", "--page", str(page), "g"])
    assert "| a | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | 0.000 (0.000 to 0.000) |" in page.read_text()
    assert "| 0.5000 (0.5000 to 0.5000) | 4 (4 to 4) |" in page.read_text()
    with pytest.raises(SystemExit, match="no gradient norm; train the run first"):
        main([f"a={tmp_path}/none"])
