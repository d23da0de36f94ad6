"""Time video denoisers of diffusers and ours at one size, with random weights: `python -m benchmarks.peers`.

Each is built from its own class with about 25 M parameters, made narrow and, if needed, shallow, with the patches,
text or image tokens, number of steps and guidance of its pipeline's defaults. All denoise 9 latent frames. Encoders
and autoencoders are left out; our planner is counted.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    I2VGenXLUNet,
    LatteTransformer3DModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from diffusers_mardini.masking import leading_indices, reference_mask_from_indices

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


FRAMES = 9
WIDTH = 320  # ours: 5 heads of 64, the depth of Table 1, and a planner three times as wide
PLANNER_DOWNSCALE = 4
OURS = "MarDini (ours)"


@dataclass(frozen=True)
class Peer:
    """A denoiser.

    Attributes:
        build: make the model.
        inputs: the side of the latents to keyword arguments.
        steps: its pipeline's default.
        evaluations_per_step: 2 if its pipeline uses guidance by default (Sec. 3: ours does if only leading frames are
            given).
        once: make the module that runs once for a video: `(module, side to keyword arguments)`.
        prepare: model and inputs to the inputs of a step, after what the model computes once for a video.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    steps: int
    evaluations_per_step: int = 2
    once: Callable[[], tuple[torch.nn.Module, Callable[[int], dict[str, Any]]]] | None = None
    prepare: Callable[[torch.nn.Module, dict[str, Any]], dict[str, Any]] | None = None


def _ours() -> torch.nn.Module:
    return MarDiniTransformer3DModel(
        num_layers=8, num_attention_heads=WIDTH // 64, attention_head_dim=64, mlp_dim=4 * WIDTH, planning_dim=3 * WIDTH
    )


def _our_inputs(side: int) -> dict[str, Any]:
    low = max(1, side // PLANNER_DOWNSCALE)
    return {
        "hidden_states": torch.randn(1, FRAMES, 16, side, side),
        "timestep": torch.full((1,), 500),
        "planning_signals": torch.randn(1, FRAMES, low, low, 3 * WIDTH),
        "reference_mask": reference_mask_from_indices(leading_indices(1), FRAMES),
        "num_masked_frames": FRAMES - 1,
    }


@torch.no_grad()
def _our_step(transformer: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a step like the pipeline's: the masked frames alone, with the state of their window."""
    state = transformer(**inputs, return_window_state=True)
    return {"hidden_states": inputs["hidden_states"][:, 1:], "timestep": inputs["timestep"], "window_state": state}


def _our_planner() -> tuple[torch.nn.Module, Callable[[int], dict[str, Any]]]:
    planner = MarDiniPlannerTransformer3DModel(
        num_layers=8, num_attention_heads=3 * WIDTH // 64, attention_head_dim=64, mlp_dim=3 * WIDTH
    )

    def inputs(side: int) -> dict[str, Any]:
        low = max(1, side // PLANNER_DOWNSCALE)
        mask = reference_mask_from_indices(leading_indices(1), FRAMES)
        return {
            "hidden_states": torch.randn(1, FRAMES, 16, low, low),
            "reference_mask": mask,
            "num_masked_frames": FRAMES - 1,
        }

    return planner, inputs


def _svd() -> torch.nn.Module:
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(64, 64, 128, 160), num_attention_heads=(4, 4, 8, 10), cross_attention_dim=1024
    )


def _svd_inputs(side: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, FRAMES, 8, side, side),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, 1, 1024),  # the picture's CLIP embedding
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }


def _i2vgen() -> torch.nn.Module:
    return I2VGenXLUNet(
        block_out_channels=(32, 64, 160, 160), attention_head_dim=32, cross_attention_dim=512, norm_num_groups=16
    )


def _i2vgen_inputs(side: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, FRAMES, side, side),
        "timestep": torch.tensor(500),
        "fps": torch.tensor([16]),
        "image_latents": torch.randn(1, 4, FRAMES, side, side),
        "image_embeddings": torch.randn(1, 512),
        "encoder_hidden_states": torch.randn(1, 77, 512),
    }


def _wan() -> torch.nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=5, attention_head_dim=64, ffn_dim=1280, num_layers=14, text_dim=512, in_channels=36
    )


def _wan_inputs(side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 36, FRAMES, side, side),  # noise, the picture's latents, and a mask
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 512, 512),
    }


def _cogvideox() -> torch.nn.Module:
    return CogVideoXTransformer3DModel(
        num_attention_heads=5, attention_head_dim=64, in_channels=32, num_layers=7, text_embed_dim=512,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip


def _cogvideox_inputs(side: int) -> dict[str, Any]:
    grid = side // 2
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), (grid, grid)), (grid, grid), FRAMES)
    return {
        "hidden_states": torch.randn(1, FRAMES, 32, side, side),  # noise and the picture's latents
        "encoder_hidden_states": torch.randn(1, 226, 512),
        "timestep": torch.tensor([500]),
        "image_rotary_emb": rotary,
    }


def _latte() -> torch.nn.Module:
    return LatteTransformer3DModel(
        num_attention_heads=5, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=8, patch_size=2,
        sample_size=64, activation_fn="gelu-approximate", cross_attention_dim=320, norm_type="ada_norm_single",
        norm_elementwise_affine=False, caption_channels=512, attention_bias=True, video_length=FRAMES,
    )  # fmt: skip


def _latte_inputs(side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, FRAMES, side, side),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 120, 512),
    }


PEERS = {
    OURS: Peer(_ours, _our_inputs, steps=25, once=_our_planner, prepare=_our_step),
    "SVD": Peer(_svd, _svd_inputs, steps=25),
    "I2VGen-XL": Peer(_i2vgen, _i2vgen_inputs, steps=50),
    "Wan": Peer(_wan, _wan_inputs, steps=50),
    "CogVideoX": Peer(_cogvideox, _cogvideox_inputs, steps=50),
    "Latte": Peer(_latte, _latte_inputs, steps=50),
}


def _cast(inputs: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Tensors on a device, latents and embeddings in `dtype`; timesteps and rotary tables as they are."""

    def cast(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cast(name, item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        keep = name in ("timestep", "image_rotary_emb") or not value.is_floating_point()
        return value.to(device) if keep else value.to(device, dtype)

    return {name: cast(name, value) for name, value in inputs.items()}


def call(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    prepare: Callable[[torch.nn.Module, dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[], Any]:
    """One evaluation, with what comes before the first one done."""
    inputs = _cast(inputs, dtype, device)
    if prepare is not None:
        inputs = prepare(module, inputs)

    @torch.no_grad()
    def run():
        return module(**inputs, return_dict=False)

    return run


def once_for_a_video(
    peer: Peer, module: torch.nn.Module, planner: torch.nn.Module, planner_inputs: dict[str, Any], side: int,
    dtype: torch.dtype, device: torch.device,
) -> Callable[[], None]:  # fmt: skip
    """The planner, and what the model itself prepares, for each branch of guidance."""
    plan, inputs = call(planner, planner_inputs, dtype, device), _cast(peer.inputs(side), dtype, device)

    def run() -> None:
        plan()
        if peer.prepare is not None:
            for _ in range(peer.evaluations_per_step):
                peer.prepare(module, inputs)

    return run


def count_operations(peer: Peer, module: torch.nn.Module, side: int) -> int:
    """Floating-point operations of one evaluation, on the device of the module."""
    evaluate = call(module, peer.inputs(side), torch.float32, next(module.parameters()).device, peer.prepare)
    # The counter does not know the CPU's own kernel of attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate()
    return counter.get_total_flops()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32], help="sides of the latents")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    names = [OURS, *(name for name in options.peers if name != OURS)]
    device = choose_device(options.device)
    machine = describe_machine(device)
    print(f"Seconds of one evaluation for {FRAMES} latent frames, median (least to largest) of {options.repeats}")
    print(machine_line(machine))
    torch.manual_seed(0)
    modules = {name: PEERS[name].build().to(device).eval() for name in names}
    once = {name: PEERS[name].once() for name in names if PEERS[name].once is not None}
    for module, _ in once.values():
        module.to(device).eval()
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    operations = {
        (name, side): count_operations(PEERS[name], modules[name], side) for name in names for side in options.sides
    }

    rows = []
    for dtype in [torch.float32] + ([torch.bfloat16] if has_bfloat16_units(device) else []):
        for module in [*modules.values(), *(module for module, _ in once.values())]:
            torch.nn.Module.to(module, dtype)  # ModelMixin's own `to` warns of norms that are better kept in float32
        for side in options.sides:
            sides = {
                name: call(modules[name], PEERS[name].inputs(side), dtype, device, PEERS[name].prepare)
                for name in names
            }
            for name, (module, inputs) in once.items():
                sides[f"{name}, once"] = once_for_a_video(
                    PEERS[name], modules[name], module, inputs(side), side, dtype, device
                )
            seconds = alternate(sides, options.repeats, device)
            print(f"\n{str(dtype).removeprefix('torch.')}, latents of {side}x{side}")
            print(
                f"{'':<16} {'M params':>8} {'GFLOP':>7} {'s':>26} {'of ours':>20} {'s a frame':>9} {'calls':>5} "
                f"{'s a video':>9}"
            )
            for name in names:
                peer, spread = PEERS[name], Spread.of(seconds[name])
                evaluations = peer.steps * peer.evaluations_per_step
                once_seconds = Spread.of(seconds[f"{name}, once"]).median if name in once else 0.0
                row = {
                    "name": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "side": side,
                    "parameters": parameters[name],
                    "operations": operations[name, side],
                    "seconds": spread,
                    "of_ours": ratio(seconds[name], seconds[OURS]),
                    "seconds_per_frame": spread.median / FRAMES,
                    "evaluations": evaluations,
                    "seconds_once": once_seconds,
                    "seconds_per_video": evaluations * spread.median + once_seconds,
                }
                rows.append(row)
                print(
                    f"{name:<16} {parameters[name] / 1e6:8.1f} {row['operations'] / 1e9:7.1f} {f'{spread:.3f}':>26} "
                    f"{format(row['of_ours'], '.2f'):>20} {row['seconds_per_frame']:9.4f} {evaluations:5d} "
                    f"{row['seconds_per_video']:9.2f}",
                    flush=True,
                )
    result = {"machine": machine, "frames": FRAMES, "rows": rows}
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
