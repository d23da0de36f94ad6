"""What a model costs is counted for the sizes that its pipeline takes."""

import pytest
import torch

from diffusers_mardini.costs import count_costs
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
