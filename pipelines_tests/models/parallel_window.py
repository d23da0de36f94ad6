"""Program of `test_context_parallel.py`: two processes share the tokens of a window's frames. Its argument is a folder
for what they say."""

import os
import sys
from pathlib import Path

import torch
from diffusers import ContextParallelConfig

from diffusers_mardini import MarDiniPlannerTransformer3DModel
from pipelines_tests.models.test_transformer_mardini import make_inputs, make_transformer
from pipelines_tests.training.forked import fork_processes


def make_planner() -> MarDiniPlannerTransformer3DModel:
    torch.manual_seed(0)
    planner = MarDiniPlannerTransformer3DModel(
        in_channels=4, patch_size=1, num_layers=2, num_attention_heads=2, attention_head_dim=8, mlp_dim=32
    )
    for parameter in planner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return planner


def whole(kind: str) -> dict[str, torch.Tensor]:
    """What one process alone computes of a window, and what it computes together with the other; equal on both."""
    latents, timestep, signals, mask = make_inputs(height=4, width=5)
    noisy = latents[~mask].unflatten(0, (2, 3))
    results = {}
    for together in (False, True):
        transformer, planner = make_transformer(temporal_attention=kind), make_planner()
        tokens = []
        for model in (transformer, planner):
            if together:
                model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
            model.transformer_blocks[0].attn.to_q.register_forward_hook(lambda m, args, y: tokens.append(y.shape[2]))
        state = transformer(latents, 0, signals, mask, num_masked_frames=3, return_window_state=True)
        results[together] = {
            "plan": planner(latents, mask, num_masked_frames=3).planning_signals,
            "whole window": transformer(latents, timestep, signals, mask, num_masked_frames=3).sample,
            "masked frames": transformer(noisy, timestep, window_state=state).sample,
        }
        assert set(tokens) == {12 if together else 24}, tokens
    return results


@torch.no_grad()
def work() -> None:
    torch.distributed.init_process_group("gloo")
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it; a CPU is none
    for kind in ("temporal", "spatiotemporal"):
        results = whole(kind)
        for name, expected in results[False].items():
            torch.testing.assert_close(results[True][name], expected, atol=1e-5, rtol=1e-5)
            print(kind, name, "is the same", flush=True)


if __name__ == "__main__":
    children = fork_processes(2, Path(sys.argv[1]), work)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(codes))
