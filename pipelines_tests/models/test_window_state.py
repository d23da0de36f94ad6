"""What the transformer computes once per window gives what the whole window gives at every step."""

import pytest
import torch

from diffusers_mardini.models.identity_attention import MarDiniDenseIdentityAttnProcessor
from pipelines_tests.models.test_transformer_mardini import KINDS, make_inputs, make_transformer


def state_of(transformer, latents, signals, mask, **kwargs):
    masked = int((~mask[0]).sum())
    return transformer(latents, 0, signals, mask, num_masked_frames=masked, return_window_state=True, **kwargs)


def masked_frames(tensor, mask):
    return tensor[~mask].unflatten(0, (len(mask), -1))


def shuffled_mask(batch=3, frames=5, kept=2):
    """Every row keeps others, also neighbours and the last."""
    return torch.tensor([[0, 4], [2, 3], [1, 2]][:batch]).new_zeros(batch, frames).bool().scatter(
        1, torch.tensor([[0, 4], [2, 3], [1, 2]])[:batch, :kept], True
    )  # fmt: skip


MASKS = {
    "first": make_inputs(3, kept=(0,))[3],
    "first and last": make_inputs(3)[3],
    "leading": make_inputs(3, kept=(0, 1, 2, 3))[3],
    "rows that differ": shuffled_mask(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("plan", ["planned", "unconditional", "mixed"])
def test_equals_the_whole_window_at_every_timestep(kind, name, plan):
    transformer, (latents, _, signals, _) = make_transformer(temporal_attention=kind), make_inputs(batch=3)
    mask = MASKS[name]
    plans = {"planning_signals_mask": torch.tensor([True, False, True])} if plan == "mixed" else {}
    signals = None if plan == "unconditional" else signals
    state = state_of(transformer, latents, signals, mask, **plans)
    for timestep in (torch.tensor(999), torch.tensor([3, 500, 998])):
        noisy = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
        expected = transformer(noisy, timestep, signals, mask, **plans).sample
        result = transformer(masked_frames(noisy, mask), timestep, window_state=state).sample
        torch.testing.assert_close(result, masked_frames(expected, mask), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_see_reference_frames_once_and_masked_frames_at_every_step(kind):
    transformer, (latents, _, signals, mask) = make_transformer(temporal_attention=kind), make_inputs()
    frames, asked = [], []
    transformer.transformer_blocks[0].register_forward_hook(lambda m, args, output: frames.append(args[0].shape[1]))
    transformer.transformer_blocks[0].cross_attn.to_k.register_forward_hook(
        lambda m, args, output: asked.append(args[0].shape[1])
    )
    state = state_of(transformer, latents, signals, mask)
    for t in (900, 500, 100):
        transformer(masked_frames(latents, mask), t, window_state=state)
    assert frames == [2, 3, 3, 3]
    assert asked == [2, 3]  # the plan: of the reference frames, and once for all steps of the masked ones


def test_nothing_of_a_masked_frame_enters_the_state():
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs()
    spoiled = torch.where(mask[:, :, None, None, None], latents, torch.nan)
    noisy = masked_frames(latents, mask)
    states = [state_of(transformer, window, signals, mask) for window in (latents, spoiled)]
    first, second = (transformer(noisy, 500, window_state=state).sample for state in states)
    assert torch.equal(first, second)


def test_gradients_pass_through_the_state():
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    signals.requires_grad_()

    def gradients(sample):
        sample.square().sum().backward()
        found = {name: p.grad for name, p in transformer.named_parameters()} | {"signals": signals.grad}
        transformer.zero_grad()
        signals.grad = None
        return found

    expected = gradients(masked_frames(transformer(latents, timestep, signals, mask).sample, mask))
    state = state_of(transformer, latents, signals, mask)
    result = gradients(transformer(masked_frames(latents, mask), timestep, window_state=state).sample)
    for name, gradient in expected.items():
        if gradient is None:
            assert result[name] is None, name
        else:
            torch.testing.assert_close(result[name], gradient, atol=1e-3, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_halves_of_a_state_are_the_states_of_the_halves():
    transformer, (latents, _, signals, _) = make_transformer(), make_inputs(batch=2)
    mask = shuffled_mask(2)
    state = state_of(transformer, latents, signals, mask)
    for row, half in enumerate(state.chunk(2, dim=0)):
        rows = slice(row, row + 1)
        assert half.batch_size == 1 and half.num_masked_frames == 3
        alone = state_of(transformer, latents[rows], signals[rows], mask[rows])
        noisy = masked_frames(latents[rows], mask[rows])
        torch.testing.assert_close(
            *(transformer(noisy, 500, window_state=s).sample for s in (half, alone)), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="2 rows cannot be cut into 3 equal parts"):
        state.chunk(3)
    with pytest.raises(ValueError, match="along dimension 1"):
        state.chunk(2, dim=1)


def test_memory_of_a_state_is_that_of_its_tensors():
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs(batch=1)
    tokens, planned, width, layers = 4 * 7, 6, 16, 2
    references, plan = 2 * tokens * width * 2, 3 * planned * width * 2
    other = 3 * 16 + 2 * 3 * tokens * 8 + 2 * tokens * 8  # pooled plan, and rotary tables of head_dim
    assert state_of(transformer, latents, signals, mask).num_bytes == 4 * (layers * (references + plan) + other)


def test_bfloat16_stays_bfloat16():
    transformer, (latents, _, signals, mask) = make_transformer().bfloat16(), make_inputs()
    latents, signals = latents.bfloat16(), signals.bfloat16()
    state = state_of(transformer, latents, signals, mask)
    sample = transformer(masked_frames(latents, mask), 500, window_state=state).sample
    expected = masked_frames(transformer(latents, 500, signals, mask).sample, mask)
    assert sample.dtype == torch.bfloat16
    difference = (sample - expected).float().abs().max() / expected.float().abs().max()
    assert difference < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph_that_serves_all_steps(kind):
    transformer, (latents, _, signals, mask) = make_transformer(temporal_attention=kind), make_inputs()
    noisy = masked_frames(latents, mask)
    timesteps = [torch.tensor(t) for t in (999, 500, 1)]
    with torch.no_grad():
        state = state_of(transformer, latents, signals, mask)
        expected = [transformer(noisy, t, window_state=state).sample for t in timesteps]
        torch._dynamo.reset()
        compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")
        state = state_of(compiled, latents, signals, mask)
        with torch._dynamo.config.patch(error_on_recompile=False):
            first = compiled(noisy, timesteps[0], window_state=state).sample
        with torch._dynamo.config.patch(error_on_recompile=True):
            results = [first] + [compiled(noisy, t, window_state=state).sample for t in timesteps[1:]]
    torch.testing.assert_close(results, expected, atol=1e-5, rtol=1e-5)


ERRORS = {
    "plan and state": (
        lambda t, latents, signals, mask, state: t(latents, 0, signals, window_state=state),
        "holds the planning signals, masks, conditions, reference timesteps and frame positions of its window; give none",
    ),
    "whole window with a state": (
        lambda t, latents, signals, mask, state: t(latents, 0, window_state=state),
        r"`window_state` was made for \(2, 3, 4, 4, 6\)",
    ),
    "neither mask nor state": (lambda t, latents, signals, mask, state: t(latents, 0), "`reference_mask` is missing"),
    "no number of masked frames": (
        lambda t, latents, signals, mask, state: t(latents, 0, signals, mask, return_window_state=True),
        r"give `num_masked_frames`, 1 to 4 \(got None\)",
    ),
    "no reference frame": (
        lambda t, latents, signals, mask, state: t(latents, 0, signals, mask, 5, return_window_state=True),
        r"1 to 4 \(got 5\)",
    ),
    "other attention": (
        lambda t, latents, signals, mask, state: (
            t.set_temporal_attention("spatiotemporal"), t(masked_frames(latents, mask), 0, window_state=state)
        ),
        "made by a transformer with 2 blocks and temporal attention",
    ),
    "timestep": (
        lambda t, latents, signals, mask, state: t(masked_frames(latents, mask), torch.zeros(2, 5), window_state=state),
        r"`timestep` has shape \(2, 5\).*\(2, 3\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused(name):
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs()
    state = state_of(transformer, latents, signals, mask)
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call(transformer, latents, signals, mask, state)


def test_the_dense_form_knows_whole_windows_only():
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs()
    state = state_of(transformer, latents, signals, mask)
    transformer.transformer_blocks[0].temporal_attn.set_processor(MarDiniDenseIdentityAttnProcessor())
    with pytest.raises(ValueError, match="sample without a window state"):
        transformer(masked_frames(latents, mask), 0, window_state=state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("references", [40, torch.tensor([0, 40, 900]), torch.arange(15).reshape(3, 5)])
def test_reference_frames_may_have_timesteps_of_their_own(kind, references):
    transformer, (latents, _, signals, mask) = make_transformer(temporal_attention=kind), make_inputs(batch=3)
    state = state_of(transformer, latents, signals, mask, reference_timestep=references)
    noisy = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
    expected = transformer(noisy, 500, signals, mask, reference_timestep=references).sample
    result = transformer(masked_frames(noisy, mask), 500, window_state=state).sample
    torch.testing.assert_close(result, masked_frames(expected, mask), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, transformer(noisy, 500, signals, mask).sample, atol=1e-3)
    with pytest.raises(ValueError, match="reference timesteps"):
        transformer(masked_frames(noisy, mask), 500, window_state=state, reference_timestep=references)
