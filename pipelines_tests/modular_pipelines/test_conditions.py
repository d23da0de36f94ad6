"""The blocks pass conditions on as the pipeline does."""

import pytest
import torch

from diffusers_mardini import MarDiniBlocks
from pipelines_tests.pipelines.test_conditions import ACTION, told_pipeline
from pipelines_tests.tiny_pipeline import clip, seeded


def modular_of(pipe, names=None):
    blocks = MarDiniBlocks()
    if names is not None:
        blocks = MarDiniBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in names})
    modular = blocks.init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in modular.component_names}
    modular.update_components(**parts, planner_downscale=pipe.config.planner_downscale)
    modular.set_progress_bar_config(disable=True)
    return modular


def arguments(**kwargs):
    return {
        "video": clip(2, 2), "num_frames": 5, "num_inference_steps": 2, "output_type": "latent",
        "generator": seeded(), **kwargs,
    }  # fmt: skip


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("num_videos", [1, 2])
def test_conditions_mean_the_same_in_blocks(guidance_scale, num_videos):
    pipe = told_pipeline()
    conditions = {"action": torch.stack([ACTION, ACTION.flip(0)]), "rate": None}
    kwargs = {"conditions": conditions, "guidance_scale": guidance_scale, "num_videos_per_prompt": num_videos}
    expected = pipe(**arguments(**kwargs)).frames
    assert torch.equal(modular_of(pipe)(**arguments(**kwargs), output="videos"), expected)
    assert not torch.allclose(pipe(**arguments(**{**kwargs, "conditions": None})).frames, expected, atol=1e-2)


def test_one_plan_with_its_conditions_serves_many_samples():
    pipe, names = told_pipeline(), list(MarDiniBlocks().sub_blocks)
    plan, sample = modular_of(pipe, names[:4]), modular_of(pipe, [names[1], *names[4:]])
    kwargs = {"conditions": {"action": ACTION}, "num_videos_per_prompt": 2}
    state = plan(**arguments(**kwargs))
    for seed in (0, 1):
        videos = sample(state=state, generator=seeded(seed), output="videos")
        assert torch.equal(videos, pipe(**arguments(**kwargs, generator=seeded(seed))).frames)


def test_blocks_refuse_what_the_pipeline_refuses():
    with pytest.raises(ValueError, match=r"has shape \(4, 2\); give \(5, 2\), a row"):
        modular_of(told_pipeline())(**arguments(conditions={"action": ACTION[:4]}))
