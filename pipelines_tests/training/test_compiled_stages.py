"""Compiled blocks and steps go through the stages of Fig. 4, forward and backward, in a few graphs without a break."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from training.config.schema import RunConfig
from training.costs import Shape
from training.engine.compiling import compile_step
from training.losses import MarDiniTrainingModel


SIZE = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16}
# What is trained, frames, pixels and attention.
STAGES = [("planner", 4, 64, "spatiotemporal"), ("transformer", 4, 64, "spatiotemporal"),
          ("transformer", 9, 64, "spatiotemporal"), ("joint", 9, 64, "spatiotemporal"), ("joint", 9, 128, "spatiotemporal"),
          ("joint", 17, 128, "temporal"),
          ("joint", 17, 192, "temporal")]  # fmt: skip


def make_config() -> RunConfig:
    stages = [
        {"name": str(i), "trains": trains, "num_frames": frames, "size": size, "temporal_attention": kind,
         "steps": 1, "batch_size": 2, "strides": {1: 1}, "warmup_steps": 0}
        for i, (trains, frames, size, kind) in enumerate(STAGES)
    ]  # fmt: skip
    return RunConfig(
        name="test", data={"train": "nowhere", "size": 64}, vae="vae", planner=SIZE,
        transformer={**SIZE, "planning_dim": 16}, mixed_precision="no", stages=stages,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_the_stages_of_a_run_learn_in_compiled_blocks_and_steps_what_they_learn_eagerly(whole):
    torch._dynamo.reset()
    config, graphs, steps = make_config(), {}, {}
    stages = [config.stages[i] for i in (0, 1, 5)] if whole else config.stages
    torch.manual_seed(0)
    models = Shape.of(config, config.stages[-1], 2).training_model(device="cpu")
    for parameter in models.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def make_step(stage) -> MarDiniTrainingModel:
        parts = {"planner": (models.planner, None, None), "transformer": (None, None, models.transformer)}
        planner, head, transformer = parts.get(stage.trains, (models.planner, None, models.transformer))
        if stage.trains == "planner":
            head = torch.nn.Linear(16, 16)
            torch.nn.init.constant_(head.weight, 0.01)
            torch.nn.init.zeros_(head.bias)
        step = MarDiniTrainingModel(planner, head, transformer, models.scheduler, planner_loss_weight=1.0)
        graphs[stage.name] = CompileCounterWithBackend("aot_eager")
        return compile_step(step, stage.model_copy(update={"compile": "step" if whole else True}), graphs[stage.name])

    def learn(stage, masked: int, stance: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Loss and gradients of a batch."""
        models.zero_grad()
        models.transformer.set_temporal_attention(stage.temporal_attention)
        step = steps[stage.name]
        torch.manual_seed(masked)
        batch = Shape.of(config, stage, masked).batch_of("cpu", torch.float32)
        with torch.compiler.set_stance(stance):
            loss = step(batch)["loss"]
            loss.backward()
        return loss.detach(), [p.grad.clone() for p in models.parameters() if p.grad is not None]

    steps |= {stage.name: make_step(stage) for stage in stages}
    cases = [(stage, masked) for stage in stages for masked in (2, 3, stage.num_frames - 1)]
    expected = [learn(*case, "force_eager") for case in cases]
    if not whole:
        for part in ("planner", "transformer"):
            graphs[part] = CompileCounterWithBackend("aot_eager")
            getattr(models, part).compile_repeated_blocks(fullgraph=True, backend=graphs[part])
    for case, before in zip(cases, expected, strict=True):
        torch.testing.assert_close(learn(*case, "default"), before, atol=1e-4, rtol=1e-3)
    if whole:
        assert all(0 < graphs[stage.name].frame_count <= 3 for stage in stages)
    else:
        assert 0 < graphs["planner"].frame_count <= 6 and 0 < graphs["transformer"].frame_count <= 10
    torch._dynamo.reset()
