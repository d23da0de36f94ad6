"""Conditions reach both models, change nothing until learned, and leave reference frames independent."""

import pytest
import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel
from pipelines_tests.models.test_transformer_mardini import (
    KINDS,
    last_block_states,
    make_inputs,
    make_transformer,
)
from pipelines_tests.models.test_window_state import MASKS, masked_frames, state_of


CONDITIONS = {"rate": 1, "action": 3}
INFO = {"action": {"range": [[-1, 1], [0, 1], [0, 1]]}, "rate": {"range": [0.04, 0.16], "unit": "s"}}


def make_planner(**overrides):
    torch.manual_seed(0)
    sizes = {
        "in_channels": 4, "patch_size": 1, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "mlp_dim": 32, "rope_theta": 100.0,
    }  # fmt: skip
    planner = MarDiniPlannerTransformer3DModel(**{**sizes, **overrides})
    for name, parameter in planner.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return planner


def make_models(**overrides):
    return make_transformer(**overrides), make_planner(**overrides)


def told_models():
    """Both models with conditions and random weights in all of their layers."""
    return make_models(conditions=CONDITIONS, condition_info=INFO)


def told(batch=2, frames=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(batch, frames, 3, generator=generator)
    return {"action": action, "rate": 0.04 + 0.12 * torch.rand(batch, frames, 1, generator=generator)}


def call(model, latents, mask, conditions=None, signals=None, timestep=500, **kwargs):
    """The output of planner or transformer."""
    if isinstance(model, MarDiniPlannerTransformer3DModel):
        return model(latents, mask, conditions=conditions, **kwargs).planning_signals
    return model(latents, torch.as_tensor(timestep), signals, mask, conditions=conditions, **kwargs).sample


def test_models_without_conditions_have_nothing_of_them():
    for model in make_models():
        assert model.condition_embedder is None
        assert not [name for name in model.state_dict() if "condition_embedder" in name]
        assert model.config.conditions is None and model.config.condition_info is None


def test_a_seed_gives_all_other_weights_as_it_does_without_conditions():
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 8}
    torch.manual_seed(0)
    plain = MarDiniPlannerTransformer3DModel(**sizes)
    torch.manual_seed(0)
    with_conditions = MarDiniPlannerTransformer3DModel(**sizes, conditions=CONDITIONS).state_dict()
    assert all(torch.equal(with_conditions[name], tensor) for name, tensor in plain.state_dict().items())


def test_added_conditions_change_nothing_until_they_are_trained():
    latents, _, signals, mask = make_inputs()
    for model in make_models():
        expected = call(model, latents, mask, signals=signals)
        model.add_conditions(CONDITIONS, INFO)
        for conditions in (None, told(), {"action": told()["action"]}):
            assert torch.equal(call(model, latents, mask, conditions, signals), expected)
        for embedding in model.condition_embedder.values():
            torch.nn.init.normal_(embedding.linear_2.weight)
        assert not torch.allclose(call(model, latents, mask, told(), signals), expected, atol=1e-2)


def test_absent_and_not_given_are_the_learned_null():
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        expected = call(model, latents, mask, None, signals)
        absent = {name: torch.full_like(values, torch.nan) for name, values in told().items()}
        for conditions in ({}, {"action": None}, absent, {"action": absent["action"]}):
            assert torch.equal(call(model, latents, mask, conditions, signals), expected)
        with torch.no_grad():
            model.condition_embedder["action"].null.mul_(-1)
        assert not torch.allclose(call(model, latents, mask, None, signals), expected, atol=1e-2)
        assert torch.isfinite(call(model, latents, mask, absent, signals)).all()


def test_rows_and_frames_are_absent_each_for_itself():
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        conditions, both = told(), told()
        both["action"][1] = torch.nan
        both["rate"][0, 3] = torch.nan
        result = call(model, latents, mask, both, signals)
        alone = call(model, latents[1:], mask[1:], {"rate": conditions["rate"][1:]}, signals[1:])
        torch.testing.assert_close(result[1:], alone, atol=1e-5, rtol=1e-5)
        whole = call(model, latents, mask, conditions, signals)
        assert not torch.allclose(result[0], whole[0], atol=1e-2)


def test_a_frame_with_nan_in_some_channels_is_seen():
    latents, _, signals, mask = make_inputs()
    conditions = told()
    conditions["action"][0, 2, 1] = torch.nan
    for model in told_models():
        assert call(model, latents, mask, conditions, signals)[0].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_reference_frame_depends_on_its_own_conditions_alone(kind):
    transformer = make_transformer(temporal_attention=kind, conditions=CONDITIONS)
    latents, _timestep, signals, mask = make_inputs()

    def states(conditions, noisy, t):
        forward = transformer.forward
        transformer.forward = lambda *arguments: forward(*arguments, conditions=conditions)
        try:
            return last_block_states(transformer, noisy, torch.tensor(t), signals, mask)
        finally:
            transformer.forward = forward

    first, conditions, changed = states(told(), latents, 500), told(), told(seed=3)
    others = {name: torch.where(mask[..., None], conditions[name], changed[name]) for name in conditions}
    noisy = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
    second = states(others, noisy, 37)
    assert torch.equal(first[mask], second[mask]) and not torch.allclose(first[~mask], second[~mask], atol=1e-2)
    own = {name: values.clone() for name, values in conditions.items()}
    own["action"][:, 0] = changed["action"][:, 0]
    third = states(own, latents, 500)
    assert not torch.allclose(first[:, 0], third[:, 0], atol=1e-2) and torch.equal(first[:, 4], third[:, 4])


def test_the_planner_is_told_of_masked_and_of_reference_frames():
    planner, (latents, _, _, mask) = make_planner(conditions=CONDITIONS), make_inputs(batch=1)
    conditions = {name: values.requires_grad_() for name, values in told(batch=1).items()}
    plan = call(planner, latents, mask, conditions)
    of_masked, of_reference = (
        torch.autograd.grad(plan[:, frame].sum(), conditions["action"], retain_graph=True)[0].abs().sum(dim=2)[0] > 0
        for frame in (2, 4)
    )
    assert of_masked.all()
    assert of_reference.tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("plan", ["planned", "unconditional", "mixed"])
@pytest.mark.parametrize("absent", ["nothing", "a condition", "frames"])
def test_the_window_state_equals_the_whole_window(kind, name, plan, absent):
    transformer = make_transformer(temporal_attention=kind, conditions=CONDITIONS, condition_info=INFO)
    (latents, _, signals, _), mask, conditions = make_inputs(batch=3), MASKS[name], told(batch=3)
    if absent == "a condition":
        conditions["rate"] = None
    elif absent == "frames":
        conditions["action"][1, :3] = torch.nan
    plans = {"planning_signals_mask": torch.tensor([True, False, True])} if plan == "mixed" else {}
    signals = None if plan == "unconditional" else signals
    state = state_of(transformer, latents, signals, mask, conditions=conditions, **plans)
    for timestep in (torch.tensor(999), torch.tensor([3, 500, 998])):
        noisy = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
        expected = transformer(noisy, timestep, signals, mask, conditions=conditions, **plans).sample
        result = transformer(masked_frames(noisy, mask), timestep, window_state=state).sample
        torch.testing.assert_close(result, masked_frames(expected, mask), atol=1e-4, rtol=1e-4)
    _first, second, _third = state.chunk(3)
    row = slice(1, 2)
    torch.testing.assert_close(
        transformer(masked_frames(noisy, mask)[row], timestep[row], window_state=second).sample, result[row],
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_gradients_are_finite_and_no_parameter_goes_without():
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        for conditions in (None, told(), {"action": torch.full((2, 5, 3), torch.nan)}):
            model.zero_grad()
            call(model, latents, mask, conditions, signals).square().sum().backward()
            gradients = {name: p.grad for name, p in model.condition_embedder.named_parameters()}
            assert len(gradients) == 10 and all(g is not None and g.isfinite().all() for g in gradients.values())
            reached = gradients["action.null"] if conditions is None else gradients["action.linear_1.weight"]
            assert reached.abs().sum() > 0 or (conditions is not None and conditions["action"].isnan().all())


def test_gradient_checkpointing_changes_nothing():
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.enable_gradient_checkpointing()
            model.zero_grad()
            call(model.train(), latents, mask, told(), signals).square().sum().backward()
            gradients.append(model.condition_embedder["action"].linear_1.weight.grad.clone())
        torch.testing.assert_close(*gradients)


def test_values_are_scaled_by_their_range():
    latents, _, signals, mask = make_inputs()
    conditions = told()
    action, rate = conditions["action"], conditions["rate"]
    by_hand = {
        "action": torch.cat([action[..., :1], action[..., 1:] * 2 - 1], dim=-1),
        "rate": (rate - 0.1) / 0.06,
    }
    for ranged, plain in zip(told_models(), make_models(conditions=CONDITIONS)):
        torch.testing.assert_close(
            call(ranged, latents, mask, conditions, signals), call(plain, latents, mask, by_hand, signals),
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip


def test_bfloat16_does_not_round_values_before_they_are_embedded():
    planner, (latents, _, _, mask) = make_planner(conditions={"rate": 1}).bfloat16(), make_inputs()
    planner.condition_embedder["rate"].condition = type(planner.condition_embedder["rate"].condition)(
        "rate", 1, ranges=((999.0, 1001.0),)
    )
    near = [{"rate": torch.full((2, 5, 1), value)} for value in (999.5, 1000.5)]  # one number in bfloat16
    first, second = (call(planner, latents.bfloat16(), mask, conditions) for conditions in near)
    assert first.dtype == torch.bfloat16 and not torch.allclose(first, second, atol=1e-1)


@pytest.fixture
def compiler():
    """Graphs of other tests, and of this one for others, count towards the limit of recompilations."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiles_as_one_graph(compiler):
    transformer, planner = make_models(conditions=CONDITIONS, condition_info=INFO, num_layers=1)
    latents, timestep, signals, mask = make_inputs()
    conditions = told()
    conditions["action"][1, 2] = torch.nan
    with torch.no_grad():
        expected = (
            call(planner, latents, mask, conditions, num_masked_frames=3),
            transformer(latents, timestep, signals, mask, 3, conditions=conditions).sample,
        )
        compiled, plan = (torch.compile(model, fullgraph=True, backend="eager") for model in (transformer, planner))
        state = state_of(compiled, latents, signals, mask, conditions=conditions)
        results = (
            plan(latents, mask, num_masked_frames=3, conditions=conditions).planning_signals,
            compiled(latents, timestep, signals, mask, 3, conditions=conditions).sample,
        )
        masked = compiled(masked_frames(latents, mask), timestep, window_state=state).sample
    torch.testing.assert_close(results, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked, masked_frames(expected[1], mask), atol=1e-4, rtol=1e-4)


def test_embeddings_of_conditions_are_not_cast_with_other_layers():
    latents, _timestep, signals, mask = make_inputs()
    for model in told_models():
        expected = call(model, latents, mask, told(), signals)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert {p.dtype for p in model.condition_embedder.parameters()} == {torch.float32}
        assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
        assert call(model, latents, mask, told(), signals).shape == expected.shape


ERRORS = {
    "an unknown name": ({"speed": torch.zeros(2, 5, 1)}, r"has speed, but this MarDini\w+ takes action: 3 channels"),
    "other channels": ({"action": torch.zeros(2, 5, 2)}, r"\(2, 5, 2\); expected \(2, 5, 3\) \(batch, frames"),
    "other frames": ({"rate": torch.zeros(2, 4, 1)}, r"`conditions\['rate'\]` has shape \(2, 4, 1\)"),
    "no batch": ({"action": torch.zeros(5, 3)}, r"has shape \(5, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_conditions_that_do_not_fit_are_refused(name):
    conditions, message = ERRORS[name]
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        with pytest.raises(ValueError, match=message):
            call(model, latents, mask, conditions, signals)


def test_a_model_without_conditions_refuses_them():
    latents, _, signals, mask = make_inputs()
    for model in make_models():
        with pytest.raises(ValueError, match="has action, rate, but this .* takes none; leave out the others"):
            call(model, latents, mask, told(), signals)
        assert call(model, latents, mask, {}, signals).isfinite().all()


def test_a_window_state_holds_its_conditions():
    transformer, (latents, _, signals, mask) = told_models()[0], make_inputs()
    state = state_of(transformer, latents, signals, mask, conditions=told())
    with pytest.raises(
        ValueError, match="conditions, reference timesteps and frame positions of its window; give none"
    ):
        transformer(masked_frames(latents, mask), 0, window_state=state, conditions=told())
