"""Counted costs hold for the sizes that the pipeline accepts, and are what it then needs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.costs import count_costs, count_model, measure
from diffusers_mardini.models.identity_attention import MarDiniDenseIdentityAttnProcessor
from pipelines_tests.allocations import most_allocated
from pipelines_tests.tiny_pipeline import tiny_pipeline


def configs(planner_downscale: int = 2, patch_size: int = 1, halvings: int = 3) -> dict:
    """`patch_size` is the transformer's."""
    size = {"in_channels": 16, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16}
    return {
        "planner": {**size, "patch_size": 1},
        "transformer": {**size, "patch_size": patch_size, "planning_dim": 16},
        "vae": {"class_name": "AutoencoderPatchBasis", "block_out_channels": (8,) * (halvings + 1)},
        "planner_downscale": planner_downscale,
    }


def operations(configs: dict, side: int) -> dict[str, int]:
    return {cost.name: cost.operations for cost in count_costs(configs, 3, side, side, 2, torch.float32)}


def test_an_autoencoder_of_another_factor_makes_other_latents():
    coarse, fine = (operations(configs(halvings=halvings), 64) for halvings in (3, 2))
    assert fine == operations(configs(halvings=3), 128) | {"vae.decode": fine["vae.decode"]}
    assert fine["transformer"] > 4 * coarse["transformer"]


@pytest.mark.parametrize("downscale, patch_size, multiple", [(3, 2, 48), (3, 1, 24), (4, 2, 32)])
def test_the_multiple_of_sizes_is_that_of_the_pipeline(downscale, patch_size, multiple):
    operations(configs(downscale, patch_size), multiple)
    with pytest.raises(ValueError, match=f"both sides must be divisible by {multiple}$"):
        operations(configs(downscale, patch_size), multiple + 8)
    pipe = tiny_pipeline(planner_downscale=downscale)
    pipe.transformer.register_to_config(patch_size=patch_size)
    assert pipe.size_multiple == multiple


def test_conditions_are_counted():
    told = configs()
    for part in ("planner", "transformer"):
        told[part]["conditions"] = {"action": 3}
    plain, counted = (
        {cost.name: cost for cost in count_costs(c, 3, 64, 64, 2, torch.float32)} for c in (configs(), told)
    )
    layers = 27 * 128 + 128 + 128 * 16 + 16 + 16  # features to hidden, hidden to width, the null
    for part in ("planner", "transformer"):
        assert counted[part].parameters == plain[part].parameters + layers
    assert counted["references"].operations > plain["references"].operations


def calls(device: str, frames: int, masked: int, rows: int, columns: int, kind: str) -> dict:
    """The calls that sample a window, of models in float32 on a device; `rows` and `columns` of latents."""
    size = {"num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 16, "mlp_dim": 96}
    with torch.device(device):
        planner = MarDiniPlannerTransformer3DModel(**size).eval().requires_grad_(False)
        transformer = MarDiniTransformer3DModel(**size, planning_dim=64, temporal_attention=kind)
        transformer = transformer.eval().requires_grad_(False)
        low, latents = torch.rand(1, frames, 16, rows // 4, columns // 4), torch.rand(1, frames, 16, rows, columns)
        reference_mask, timestep = torch.ones(1, frames, dtype=torch.bool), torch.zeros(1)
        reference_mask[:, :masked] = False
    window = {"reference_mask": reference_mask, "num_masked_frames": masked}
    signals = planner(low, **window).planning_signals
    state = transformer(latents, timestep, signals, **window, return_window_state=True)
    return {
        "planner": lambda: planner(low, **window),
        "whole window": lambda: transformer(latents, timestep, signals, **window),
        "references": lambda: transformer(latents, timestep, signals, **window, return_window_state=True),
        "masked frames": lambda: transformer(latents[:, :masked], timestep, window_state=state),
    }


@pytest.mark.parametrize("kind", ["temporal", "spatiotemporal"])
@pytest.mark.parametrize("window", [(9, 7, 16, 24), (5, 1, 24, 24), (17, 15, 16, 16), (4, 3, 8, 8)], ids=str)
def test_what_is_counted_is_what_a_cpu_allocates(window, kind):
    """In float32, without gradients, where a CPU runs a fused kernel."""
    with torch.no_grad():
        counted, run = calls("meta", *window, kind), calls("cpu", *window, kind)
        for name in counted:
            assert measure(counted[name])[2] == pytest.approx(most_allocated(run[name]), rel=0.1), name


def test_four_times_the_tokens_need_four_times_the_memory():
    """Stored scores of a frame's tokens would be sixteen times as many."""
    heads = {"num_attention_heads": 16, "attention_head_dim": 4}
    size = {"in_channels": 16, "num_layers": 1, **heads, "mlp_dim": 64}
    configs = {"planner": size, "transformer": {**size, "planning_dim": 64}, "vae": {}, "planner_downscale": 4}
    small, large = (count_costs(configs, 5, side, side, 2, torch.bfloat16) for side in (512, 1024))
    for one, other in zip(small, large, strict=True):
        assert 3.8 < other.activation_bytes / one.activation_bytes < 4.2, one.name


def test_the_largest_model_of_the_paper_at_its_largest_size_fits_a_small_gpu():
    text = str(count_model("mardini-l-t", height=1024, width=1024))
    assert "69.9 GiB" not in text
    rows = {line.split()[0]: line.split()[-2:] for line in text.splitlines()}
    assert rows["planner"] == ["1.7", "GiB"] and rows["together"] == ["2.3", "GiB"]
    assert "fused attention, which stores no scores" in text


def test_scores_are_counted_where_they_are_stored():
    """By torch's plain form where no other is allowed, and with a mask."""
    frames, masked, side, kind, heads = 5, 3, 32, "spatiotemporal", 4
    tokens = side // 2 * (side // 2 + 1)
    with torch.no_grad():
        call = calls("meta", frames, masked, side, side, kind)["whole window"]
        fused = measure(call)[2]
        with sdpa_kernel(SDPBackend.MATH):
            scores = 4 * heads * masked * tokens * frames * tokens
            assert scores > 2 * fused and measure(call)[2] > scores

    with torch.device("meta"):
        size = {"num_layers": 1, "num_attention_heads": heads, "attention_head_dim": 16, "mlp_dim": 96}
        planner = MarDiniPlannerTransformer3DModel(**size).requires_grad_(False)
        latents, mask = torch.rand(1, frames, 16, 16, 16), torch.zeros(1, frames, dtype=torch.bool)
    for block in planner.transformer_blocks:
        block.spatiotemporal_attn.set_processor(MarDiniDenseIdentityAttnProcessor())
    assert measure(lambda: planner(latents, mask))[2] > 4 * heads * (frames * 16 * 17) ** 2
