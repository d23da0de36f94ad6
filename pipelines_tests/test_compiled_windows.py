"""Compiled blocks take windows of every shape, in a few graphs, and without a break (`fullgraph=True`).

Graphs are made by dynamo and run as they are: what is tested is when another one is made. A size of 1 has
graphs of its own, and so has each size until a second one has been seen.
"""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.models import compiling
from diffusers_mardini.models.compiling import MOST_GRAPHS
from diffusers_mardini.models.window import WindowLayout
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


SIZE = {"in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4, "mlp_dim": 8}
# Frames, of which masked, rows and columns of latents.
WINDOWS = [(3, 2, 4, 4), (4, 2, 4, 6), (5, 3, 6, 4), (7, 5, 4, 4), (8, 4, 8, 4), (9, 7, 4, 8), (11, 9, 2, 6),
           (13, 3, 6, 6), (16, 12, 4, 4), (17, 15, 6, 4)]  # fmt: skip


@pytest.fixture(autouse=True)
def forgetful():
    """Forget graphs of other tests, which would count against the limit."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh weights gate all blocks away."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def make_window(frames: int, masked: int, rows: int, columns: int, batch: int = 1) -> tuple[torch.Tensor, dict]:
    """Latents, and what both models are told about the window."""
    mask = torch.ones(batch, frames, dtype=torch.bool)
    mask[:, 1 : 1 + masked] = False
    generator = torch.Generator().manual_seed(frames)
    latents = torch.randn(batch, frames, 4, rows, columns, generator=generator)
    return latents, {"reference_mask": mask, "num_masked_frames": masked}


def sample(transformer: MarDiniTransformer3DModel, window: tuple, with_state: bool, batch: int = 1) -> torch.Tensor:
    latents, told = make_window(*window, batch=batch)
    frames, _, rows, columns = window
    plan = torch.randn(batch, frames, rows // 2, columns // 2, 8, generator=torch.Generator().manual_seed(1))
    if not with_state:
        velocity = transformer(latents, 500, plan, **told).sample
        return velocity[~told["reference_mask"]]
    state = transformer(latents, 0, plan, **told, return_window_state=True)
    masked = latents[~told["reference_mask"]].unflatten(0, (batch, -1))
    return transformer(masked, 500, window_state=state).sample.flatten(0, 1)


def compiled(model: torch.nn.Module) -> CompileCounter:
    """Compiles the blocks in place; the counter knows how many graphs were made."""
    counter = CompileCounter()
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    return counter


def test_ten_shapes_of_windows_make_few_graphs_of_the_planner():
    """One for the first window, whose sizes are taken as fixed, and one or two for all others."""
    planner = lively(MarDiniPlannerTransformer3DModel(**SIZE))

    def plan(window: tuple) -> torch.Tensor:
        latents, told = make_window(*window)
        return planner(latents, **told).planning_signals

    with torch.no_grad():
        expected = [plan(window) for window in WINDOWS]
        graphs = compiled(planner)
        torch.testing.assert_close([plan(window) for window in WINDOWS], expected, atol=1e-5, rtol=1e-5)
    assert graphs.frame_count <= 3


@pytest.mark.parametrize("kind", ["temporal", pytest.param("spatiotemporal", marks=pytest.mark.slow)])
@pytest.mark.parametrize("with_state", [False, True])
def test_ten_shapes_of_windows_make_few_graphs_of_the_transformer(kind, with_state):
    transformer = lively(MarDiniTransformer3DModel(**SIZE, patch_size=1, planning_dim=8, temporal_attention=kind))
    with torch.no_grad():
        expected = [sample(transformer, window, with_state) for window in WINDOWS]
        graphs = compiled(transformer)
        results = [sample(transformer, window, with_state) for window in WINDOWS]
    torch.testing.assert_close(results, expected, atol=1e-4, rtol=1e-4)
    # A first window, one of another size, one with another number of masked frames; of whole windows, one whose plan
    # has a single row.
    assert graphs.frame_count <= (6 if with_state else 4)


def test_the_index_of_masked_frames_is_laid_out_alike_for_every_window():
    for frames, masked, *_ in (*WINDOWS, (9, 1, 0, 0), (5, 1, 0, 0)):
        for batch in (1, 2):
            _, told = make_window(frames, masked, 1, 1, batch=batch)
            index = WindowLayout.from_mask(told["reference_mask"], masked).masked_index
            assert index.shape == (batch * masked,) and index.stride() == (1,) and not index._is_view()


@pytest.mark.slow
def test_the_limit_of_graphs_is_that_of_our_blocks_alone():
    before = torch._dynamo.config.recompile_limit
    transformer = lively(MarDiniTransformer3DModel(**SIZE, patch_size=1, planning_dim=8))
    graphs = compiled(transformer)
    with torch.no_grad():
        for kind in ("temporal", "spatiotemporal"):  # more of them than torch allows by itself
            transformer.set_temporal_attention(kind)
            for window in ((3, 1, 2, 2), (3, 2, 2, 2), (4, 1, 4, 4), (4, 2, 4, 4)):
                sample(transformer, window, with_state=True)
    assert before < graphs.frame_count <= MOST_GRAPHS
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_long_videos_of_every_shape_are_those_of_eager_blocks(backend):
    calls = {}
    pipe = tiny_pipeline()
    quick = {"num_inference_steps": 2, "output_type": "latent"}
    for factor in range(2, 9):
        calls[f"slow motion {factor}"] = functools.partial(pipe.slow_motion, clip(3), factor=factor, **quick)
    for new in (3, 5):
        calls[f"extend {new}"] = functools.partial(pipe.extend, clip(3), num_new_frames=new, **quick)
    for frames in (3, 5, 9):
        calls[f"image {frames}"] = functools.partial(pipe, image=clip(1)[0], num_frames=frames, **quick)
        calls[f"gap {frames}"] = functools.partial(
            pipe, video=clip(2), frame_indices=[0, frames - 1], num_frames=frames, **quick
        )
    calls["two gaps"] = functools.partial(pipe, video=clip(2, 2), frame_indices=[0, 4], num_frames=5, **quick)
    calls["wide"] = functools.partial(
        pipe, video=clip(2, size=64)[..., :32, :], frame_indices=[0, 4], num_frames=5, **quick
    )
    calls["whole windows"] = functools.partial(calls["image 5"], use_window_state=False)

    expected = {name: call(generator=seeded()).frames for name, call in calls.items()}
    graphs = {}
    for part in ("planner", "transformer"):
        graphs[part] = CompileCounterWithBackend(backend)
        getattr(pipe, part).compile_repeated_blocks(fullgraph=True, backend=graphs[part])
    for name, call in calls.items():
        torch.testing.assert_close(call(generator=seeded()).frames, expected[name], atol=1e-3, rtol=1e-3, msg=name)
        if name == "slow motion 8":
            assert graphs["transformer"].frame_count <= 8
    assert graphs["planner"].frame_count <= 8 and graphs["transformer"].frame_count <= 32
    assert not counters["graph_break"]


@pytest.mark.slow
def test_whole_models_compile_over_windows_too():
    pipe = tiny_pipeline()
    expected = [
        pipe.slow_motion(
            clip(3), factor=factor, num_inference_steps=1, generator=seeded(), output_type="latent"
        ).frames
        for factor in (2, 3, 5)
    ]
    pipe.planner.compile(fullgraph=True, backend="eager")
    pipe.transformer.compile(fullgraph=True, backend="eager")
    results = [
        pipe.slow_motion(
            clip(3), factor=factor, num_inference_steps=1, generator=seeded(), output_type="latent"
        ).frames
        for factor in (2, 3, 5)
    ]
    torch.testing.assert_close(results, expected, atol=1e-3, rtol=1e-3)


def test_what_a_window_keeps_is_copied_from_cuda_graphs(monkeypatch):
    """A replay overwrites the results of the one before. Without a GPU, the device is only said to be one."""
    transformer = lively(MarDiniTransformer3DModel(planning_dim=8, **SIZE))
    latents, told = make_window(5, 3, 4, 4)
    plan, begun, made = torch.randn(1, 5, 2, 2, 8), [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    monkeypatch.setattr(compiling, "_may_replay", lambda blocks, device: True)
    for block in transformer.transformer_blocks:
        block.register_forward_hook(lambda m, args, result: made.append(result))
    state = transformer(latents, 0, plan, **told, return_window_state=True)
    assert len(begun) == 1 and len(made) == 2
    for (_, theirs), ours in zip(made, state.blocks, strict=True):
        for name in ("reference_key_value", "planning_key_value"):
            for given, kept in zip(getattr(theirs, name), getattr(ours, name), strict=True):
                assert torch.equal(given, kept) and given.data_ptr() != kept.data_ptr()
    transformer(latents[:, 1:4], 500, window_state=state)
    transformer(latents, 500, plan, **told)
    assert len(begun) == 3


def test_on_a_cpu_nothing_is_copied():
    transformer = lively(MarDiniTransformer3DModel(planning_dim=8, **SIZE))
    transformer.compile_repeated_blocks(backend="eager")
    value = (torch.ones(2), None)
    assert compiling.kept(value, transformer.transformer_blocks, torch.device("cpu")) is value
    copied = compiling.kept(value, transformer.transformer_blocks, torch.device("cuda"))
    assert copied[0] is not value[0] and torch.equal(copied[0], value[0]) and copied[1] is None
