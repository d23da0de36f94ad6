"""On a GPU, where there is one: what is sampled there is what the CPU samples, wherever the weights wait meanwhile."""

import pytest
import torch

from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.test_latents import tiny_kl
from pipelines_tests.training.data.test_windows import MIXTURE, make
from pipelines_tests.training.data.test_windows import run as draw_batch


DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def run(pipe, **kwargs) -> torch.Tensor:
    """The noise is drawn on the CPU, which a GPU's own generator would not repeat."""
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=3, output_type="pt", generator=seeded(), guidance_scale=2.0, **kwargs
    ).frames.cpu()  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    return run(tiny_pipeline())


@pytest.mark.parametrize("use_window_state", [True, False])
def test_a_gpu_samples_what_the_cpu_does(expected, use_window_state):
    pipe = tiny_pipeline().to(DEVICE)
    torch.testing.assert_close(run(pipe, use_window_state=use_window_state), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
def test_offloaded_parts_sample_the_same_and_wait_on_the_cpu(expected, offload):
    pipe = tiny_pipeline()
    if offload == "group":
        pipe.enable_group_offload(onload_device=torch.device(DEVICE), offload_type="leaf_level")
    else:
        getattr(pipe, f"enable_{offload}_cpu_offload")(device=DEVICE)
    for _ in range(2):
        torch.testing.assert_close(run(pipe), expected, atol=1e-2, rtol=1e-2)
    if offload == "model":
        pipe.maybe_free_model_hooks()
    assert "cuda" not in {parameter.device.type for parameter in pipe.transformer.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(expected, dtype):
    frames = run(tiny_pipeline().to(DEVICE, dtype))
    assert frames.isfinite().all() and (frames - expected).abs().mean() < 0.01


def test_long_videos_are_sampled_there_too():
    frames = clip(3)
    results = [
        pipe.slow_motion(frames, factor=2, window=3, num_inference_steps=2, output_type="pt", generator=seeded()).frames.cpu()
        for pipe in (tiny_pipeline(), tiny_pipeline().to(DEVICE))
    ]  # fmt: skip
    torch.testing.assert_close(*results, atol=1e-2, rtol=1e-2)


def test_batches_gathered_there_are_bit_for_bit_those_of_the_cpu(tmp_path):
    for index in range(3):
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(8, 32, 32, seed=index), fps=10)
    cached, resident = (make(tmp_path / "clips", vae=tiny_kl()) for _ in range(2))
    resident.keep_on_device(torch.device(DEVICE), 1e9)
    for step in range(3):
        (draws, batch), (expected_draws, expected) = (draw_batch(w, MIXTURE, step) for w in (resident, cached))
        assert draws == expected_draws and all(tensor.is_cuda for tensor in batch)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(batch, expected, strict=True))
