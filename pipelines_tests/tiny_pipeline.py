"""Real classes at toy size, shared by the tests of the pipeline: 32x32 pixels, 4x4 latents, 2x2 for the planner."""

import torch
from diffusers import AutoencoderKL
from torch import nn

from diffusers_mardini import (
    AutoencoderPatchBasis,
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)


SIZE = 32
CHANNELS = 16
MODELS = ("vae", "planner", "transformer")


def tiny_vae(kind: str = "patch_basis") -> nn.Module:
    if kind == "patch_basis":
        return AutoencoderPatchBasis(block_out_channels=(8, 8, 8, 8), encoder_blocks=1, decoder_blocks=1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=1.5,
        shift_factor=0.25,
        mid_block_add_attention=False,
    )


def tiny_pipeline(vae: str = "patch_basis", planner_downscale: int = 2, **scheduler_kwargs) -> MarDiniPipeline:
    """Two layers, width 32; every weight is random, because fresh ones gate all blocks away."""
    torch.manual_seed(0)
    size = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "mlp_dim": 32}
    planner = MarDiniPlannerTransformer3DModel(in_channels=CHANNELS, patch_size=1, **size)
    transformer = MarDiniTransformer3DModel(in_channels=CHANNELS, patch_size=1, planning_dim=32, **size)
    for model in (planner, transformer):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
    pipe = MarDiniPipeline(
        vae=tiny_vae(vae).eval(),
        planner=planner.eval(),
        transformer=transformer.eval(),
        scheduler=MarDiniScheduler(**scheduler_kwargs),
        planner_downscale=planner_downscale,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(num_frames: int, *batch: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Noise in [0, 1], shaped `(*batch, num_frames, 3, size, size)`."""
    return torch.rand(*batch, num_frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class CallCounter:
    """Counts the calls of each model of a pipeline, by hooks on the real modules.

    `"transformer"` are its denoising steps, `"window_state"` its calls before them.
    """

    def __init__(self, pipe: MarDiniPipeline):
        self.counts = dict.fromkeys((*MODELS, "window_state"), 0)
        self.inputs = {name: [] for name in self.counts}
        for name in ("planner", "transformer"):
            getattr(pipe, name).register_forward_hook(self._hook(name), with_kwargs=True)
        # `encode` and `decode` do not pass `forward`: any layer at work counts.
        for layer in pipe.vae.modules():
            layer.register_forward_hook(self._hook("vae"), with_kwargs=True)

    def _hook(self, name: str):
        def count(module, args, kwargs, output):
            called = "window_state" if kwargs.get("return_window_state") else name
            self.counts[called] += 1
            if name != "vae":
                self.inputs[called].append((args, kwargs, output))

        return count
