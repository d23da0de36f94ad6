"""A random pipeline of the real classes, small enough for any test: 32x32 pixels, about 100 thousand parameters."""

from pathlib import Path

import torch

from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.models.transformer_mardini import MarDiniTransformer3DModel
from diffusers_mardini.models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from diffusers_mardini.pipelines.pipeline_mardini import MarDiniPipeline
from diffusers_mardini.schedulers.scheduling_mardini import MarDiniScheduler


SIZE = 32


def make_tiny_pipeline(seed: int = 0) -> MarDiniPipeline:
    """Every parameter is random, those that start at zero too, so that all parts have an influence."""
    torch.manual_seed(seed)
    parts = {
        "vae": AutoencoderPatchBasis(block_out_channels=(8, 8, 8, 8), decoder_blocks=1, sample_size=SIZE),
        "planner": MarDiniPlannerTransformer3DModel(
            num_layers=1, num_attention_heads=2, attention_head_dim=8, mlp_dim=16
        ),
        "transformer": MarDiniTransformer3DModel(
            patch_size=1, num_layers=1, num_attention_heads=2, attention_head_dim=8, mlp_dim=16, planning_dim=16
        ),
    }
    for module in parts.values():
        module.eval()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return MarDiniPipeline(**parts, scheduler=MarDiniScheduler(), planner_downscale=2)


def save_tiny_checkpoint(folder: Path) -> Path:
    make_tiny_pipeline().save_pretrained(folder)
    return folder
