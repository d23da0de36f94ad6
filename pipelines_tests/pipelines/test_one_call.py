"""A pipeline serves one call at a time; another call at the same time is refused, and does not disturb the first."""

import copy
import pickle
import threading

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from diffusers_mardini import MarDiniBlocks, MarDiniPipeline
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


KWARGS = {"image": clip(1)[0], "num_frames": 4, "num_inference_steps": 3, "output_type": "latent"}
REFUSED = "is at work already, and serves one call at a time"


@pytest.fixture
def pipe():
    return tiny_pipeline()


def calls_of(pipe) -> dict:
    return {
        "call": lambda **kwargs: pipe(**KWARGS, generator=seeded(), **kwargs).frames,
        "extend": lambda **kwargs: (
            pipe.extend(
                clip(2), num_new_frames=2, num_inference_steps=2, output_type="latent", generator=seeded(), **kwargs
            ).frames
        ),
        "slow motion": lambda **kwargs: (
            pipe.slow_motion(
                clip(2), factor=2, num_inference_steps=2, output_type="latent", generator=seeded(), **kwargs
            ).frames
        ),
    }


@pytest.mark.parametrize("scheduler", [None, DDIMScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("outer", ["call", "extend", "slow motion"])
@pytest.mark.parametrize("inner", ["call", "extend", "slow motion"])
def test_a_second_call_from_another_thread_is_refused_and_the_first_goes_on(pipe, outer, inner, scheduler):
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    calls, errors = calls_of(pipe), []
    alone = calls[outer]()

    def second():
        try:
            calls[inner]()
        except Exception as error:
            errors.append(error)

    def in_between(pipe, step, timestep, tensors):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    assert torch.equal(calls[outer](callback_on_step_end=in_between), alone)
    assert errors and all(isinstance(error, ValueError) and REFUSED in str(error) for error in errors)
    assert torch.equal(calls[outer](), alone)


def test_a_call_from_a_callback_is_refused(pipe):
    calls = calls_of(pipe)
    with pytest.raises(ValueError, match=REFUSED):
        calls["call"](callback_on_step_end=lambda *_: calls["extend"]())
    calls["call"]()


def test_an_error_sets_the_pipeline_free(pipe):
    calls = calls_of(pipe)

    def stop(*_):
        raise KeyboardInterrupt

    for name, call in calls.items():
        with pytest.raises(KeyboardInterrupt):
            call(callback_on_step_end=stop)
        with pytest.raises(ValueError, match="`eta`"):
            call(eta=2.0)
        assert call().isfinite().all(), name


def test_pipelines_that_share_a_scheduler_serve_one_call_together(pipe):
    other = MarDiniPipeline.from_pipe(pipe)
    assert other.scheduler is pipe.scheduler
    with pytest.raises(ValueError, match=REFUSED):
        pipe(**KWARGS, callback_on_step_end=lambda *_: other(**KWARGS))


def test_a_pipeline_for_each_thread_gives_what_one_alone_gives(pipe):
    """As the message says: `from_pipe` with a copy of the scheduler, and the models shared."""
    pipes = [
        MarDiniPipeline.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler), dtype=pipe.dtype) for _ in range(3)
    ]
    assert all(one.transformer is pipe.transformer for one in pipes)
    made, alone = {}, {seed: pipe(**KWARGS, generator=seeded(seed)).frames for seed in range(3)}

    def work(seed: int) -> None:
        pipes[seed].set_progress_bar_config(disable=True)
        made[seed] = pipes[seed](**KWARGS, generator=seeded(seed)).frames

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[seed], alone[seed]) for seed in range(3))


def test_a_modular_pipeline_serves_one_call_at_a_time_too(pipe):
    modular = MarDiniBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    modular.update_components(planner_downscale=2)
    modular.set_progress_bar_config(disable=True)
    alone = modular(**KWARGS, generator=seeded(), output="videos")
    for other in (modular, pipe):  # which have the same scheduler
        with pytest.raises(ValueError, match=REFUSED):
            modular(**KWARGS, callback_on_step_end=lambda *_: other(**KWARGS))
    assert torch.equal(modular(**KWARGS, generator=seeded(), output="videos"), alone)


def test_a_pipeline_is_copied_as_before_also_while_it_works(pipe):
    alone, copies = calls_of(pipe)["call"](), [copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))]
    pipe(**KWARGS, callback_on_step_end=lambda *_: copies.append(copy.deepcopy(pipe)))
    for one in copies:
        assert torch.equal(one(**KWARGS, generator=seeded()).frames, alone)
