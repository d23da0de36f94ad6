"""diffusers' caches on the transformer: they save calls of its layers, and switched off they leave nothing behind."""

import itertools
from collections import Counter

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


STEPS = 10
LAYERS = 2
KINDS = ("attn", "temporal_attn", "cross_attn")


def run(pipe, guidance_scale=1.0, **kwargs) -> torch.Tensor:
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=STEPS, output_type="latent", generator=seeded(),
        guidance_scale=guidance_scale, **kwargs,
    ).frames  # fmt: skip


class WorkCounter(Counter):
    """Counts how often the work inside blocks and attentions is done: caches hook these modules, not their layers.

    The reference frames' pass, once per window, counts for blocks, spatial and cross attention: one for each layer.
    """

    def __init__(self, transformer):
        super().__init__()
        for block in transformer.transformer_blocks:
            block.norm1.register_forward_hook(lambda *_: self.update(["block"]))
            for kind in KINDS:
                getattr(block, kind).to_q.register_forward_hook(lambda *_, kind=kind: self.update([kind]))


def pyramid(pipe, **kwargs):
    return PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: pipe.current_timestep, **kwargs)


def faster(pipe, **kwargs):
    return FasterCacheConfig(
        current_timestep_callback=lambda: pipe.current_timestep, attention_weight_callback=lambda _: 0.3, **kwargs
    )


# Name: configuration, and the work of 10 steps of 2 layers with it: blocks, spatial, temporal, cross attention.
CACHES = {
    "PAB": (
        lambda pipe: pyramid(
            pipe, spatial_attention_block_skip_range=2, temporal_attention_block_skip_range=3,
            cross_attention_block_skip_range=5,
        ),
        (20, 14, 10, 8),
    ),
    "PAB, cross-attention alone": (lambda pipe: pyramid(pipe, cross_attention_block_skip_range=2), (20, 20, 20, 14)),
    "FasterCache": (lambda pipe: faster(pipe, is_guidance_distilled=True), (20, 14, 20, 20)),
    "FirstBlockCache": (lambda pipe: FirstBlockCacheConfig(threshold=10.0), (11, 11, 11, 11)),
    "TaylorSeer": (lambda pipe: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2), (20, 10, 10, 10)),
    "TaylorSeer, lite": (
        lambda pipe: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, use_lite_mode=True),
        (10, 10, 10, 10),
    ),
    "MagCache": (
        lambda pipe: MagCacheConfig(threshold=0.2, num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS)),
        (8, 8, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_saves_work_and_leaves_nothing_behind(name):
    config, expected = CACHES[name]
    pipe = tiny_pipeline()
    plain = run(pipe)
    work = WorkCounter(pipe.transformer)
    pipe.transformer.enable_cache(config(pipe))
    cached = run(pipe)
    counted = tuple(work[kind] for kind in ("block", *KINDS))
    assert tuple(n - before for n, before in zip(counted, (LAYERS, LAYERS, 0, LAYERS))) == expected
    assert cached.isfinite().all() and not torch.equal(cached, plain)
    assert torch.equal(run(pipe), cached)  # a second window starts afresh
    pipe.transformer.disable_cache()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("name", CACHES)
def test_under_guidance_both_branches_keep_their_own_features(name):
    """What is cached of one branch never serves the other: the branches stay as different as they were."""
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(CACHES[name][0](pipe))
    counter, contexts, cache_context = CallCounter(pipe), [], pipe.transformer.cache_context
    pipe.transformer.cache_context = lambda branch, **kwargs: (
        contexts.append(branch),
        cache_context(branch, **kwargs),
    )[1]
    # One weight of guidance cannot be told from another where both branches are one and the same.
    weak, strong = run(pipe, 1.5), run(pipe, 4.0)
    assert not torch.allclose(weak, strong, atol=1e-1)
    rows = [args[0].shape[0] for args, _, _ in counter.inputs["transformer"]]
    joined = name.startswith(("PAB", "Faster"))
    assert rows == ([2] * STEPS * 2 if joined else [1] * STEPS * 4)
    assert contexts == (["both"] if joined else ["cond", "uncond"]) * STEPS * 2  # a memory for each branch
    for _, _, output in counter.inputs["transformer"][: 1 if rows[0] == 2 else 0]:
        assert not torch.allclose(*output[0].chunk(2), atol=1e-2)


def test_pyramid_attention_never_takes_one_branch_for_the_other():
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(pyramid(pipe, cross_attention_block_skip_range=3))
    outputs = []
    # `register_forward_hook` sees what the cache hands out.
    pipe.transformer.transformer_blocks[0].cross_attn.register_forward_hook(
        lambda m, a, output: outputs.append(output)
    )
    run(pipe, 2.0)
    reused = [(before, after) for before, after in itertools.pairwise(outputs) if torch.equal(before, after)]
    assert len(reused) >= 3
    for _, output in reused:
        unconditional, conditional = output.chunk(2)
        assert not torch.allclose(unconditional, conditional, atol=1e-2)


def test_both_branches_in_one_call_equal_two_calls():
    pipe = tiny_pipeline()
    expected = run(pipe, 2.0)
    never = pyramid(pipe, spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-2, -1))
    pipe.transformer.enable_cache(never)
    torch.testing.assert_close(run(pipe, 2.0), expected, rtol=1e-3, atol=1e-3)


def test_faster_cache_computes_the_unconditional_branch_now_and_then():
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(faster(pipe, unconditional_batch_skip_range=2))
    rows = []
    pipe.transformer.patch_embed.register_forward_hook(lambda m, args, output: rows.append(output.shape[0]))
    latents = run(pipe, 2.0)
    assert rows == [2] + [
        2,
        2,
        2,
        2,
        2,
        1,
        2,
        1,
        2,
        1,
    ]  # the window's state; timesteps 999, 899, ... and below 641 every second
    assert latents.isfinite().all()


def test_faster_cache_without_guidance_says_how_to_be_used():
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(faster(pipe))
    with pytest.raises(ValueError, match="without guidance there is none.*is_guidance_distilled=True"):
        run(pipe, 1.0)


def test_a_callback_may_switch_guidance_off_while_a_cache_is_on():
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(pyramid(pipe, spatial_attention_block_skip_range=2))
    counter = CallCounter(pipe)

    def switch_off(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0 if step >= 5 else 2.0
        return tensors

    assert run(pipe, 2.0, callback_on_step_end=switch_off).isfinite().all()
    assert [args[0].shape[0] for args, _, _ in counter.inputs["transformer"]] == [2] * 6 + [1] * 4


@pytest.mark.parametrize("from_scale, to_scale", [(1.0, 2.0), (2.0, 1.0)])
def test_faster_cache_refuses_guidance_that_changes_between_steps(from_scale, to_scale):
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(faster(pipe, is_guidance_distilled=from_scale == 1.0 or to_scale == 1.0))

    def change(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = to_scale if step >= 4 else from_scale
        return tensors

    with pytest.raises(ValueError, match="FasterCache cannot follow guidance that begins or ends between steps"):
        run(pipe, from_scale, callback_on_step_end=change)


def test_names_of_layers_that_the_user_gives_are_kept():
    pipe = tiny_pipeline()
    mine = (r"transformer_blocks\.1\.attn$",)
    config = pyramid(pipe, spatial_attention_block_skip_range=2, spatial_attention_block_identifiers=mine)
    pipe.transformer.enable_cache(config)
    assert pipe.transformer._cache_config.spatial_attention_block_identifiers == mine
    hooked = [name for name, module in pipe.transformer.named_modules()
              if getattr(module, "_diffusers_hook", None) and name.endswith("attn")
              and module._diffusers_hook.get_hook("pyramid_attention_broadcast")]  # fmt: skip
    assert hooked == ["transformer_blocks.1.attn"]


def test_mag_cache_is_calibrated_on_this_model(capsys):
    """`calibrate=True` prints the ratios that a checkpoint needs; with them, the cache runs."""
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    run(pipe)
    printed = capsys.readouterr().out
    ratios = [float(ratio) for ratio in printed[printed.index(":\n[") + 3 : printed.rindex("]")].split(",")]
    assert len(ratios) == STEPS and ratios[0] == 1.0 and min(ratios) > 0
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, mag_ratios=ratios, threshold=0.5))
    assert run(pipe).isfinite().all()


def test_every_argument_with_rows_of_both_branches_is_halved_with_them():
    """FasterCache leaves out the unconditional rows of some steps."""
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(faster(pipe))
    rollout = pipe.rollout(
        clip(2), window=4, overlap=2, generated_noise=0.2, guidance_scale=2.0, use_window_state=False,
        num_inference_steps=STEPS, generator=seeded(), output_type="pt",
    )  # fmt: skip
    assert all(rollout.step().frames.isfinite().all() for _ in range(2))
