"""Sec. 2.3 and the decisions of ours that it rests on: clean references, planning signals that know their place."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks._helpers import TransformerBlockRegistry

from diffusers_mardini import MarDiniTransformer3DModel
from diffusers_mardini.models.attention import MarDiniAttention
from diffusers_mardini.models.identity_attention import MarDiniDenseIdentityAttnProcessor, MarDiniIdentityAttention
from diffusers_mardini.models.transformer_mardini import MarDiniTransformerBlock


KINDS = ["temporal", "spatiotemporal"]


def make_transformer(**overrides):
    torch.manual_seed(0)
    sizes = {
        "in_channels": 4, "patch_size": 1, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 32,
        "planning_dim": 12, "rope_theta": 100.0, "latent_skip": True,
    }  # fmt: skip
    transformer = MarDiniTransformer3DModel(**{**sizes, **overrides})
    for name, parameter in transformer.named_parameters():  # gates and outputs start at zero and would hide everything
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_inputs(batch=2, frames=5, kept=(0, 4), height=4, width=6):
    torch.manual_seed(1)
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    mask[:, list(kept)] = True
    latents, signals = torch.randn(batch, frames, 4, height, width), torch.randn(batch, frames, 2, 3, 12)
    return latents, torch.tensor(500), signals, mask


def last_block_states(transformer, *arguments):
    states = []
    handle = transformer.transformer_blocks[-1].register_forward_hook(lambda m, i, output: states.append(output))
    transformer(*arguments)
    handle.remove()
    return states[0]  # (batch, frames, tokens, dim)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_reference_frames_depends_on_neither_noise_nor_timestep(kind):
    transformer = make_transformer(temporal_attention=kind)
    latents, timestep, signals, mask = make_inputs()
    states = last_block_states(transformer, latents, timestep, signals, mask)
    other = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
    changed = last_block_states(transformer, other, torch.tensor(37), signals, mask)
    assert torch.equal(states[mask], changed[mask])
    assert not torch.allclose(states[~mask], changed[~mask], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [(0,), (0, 4), (1, 2, 3)])
def test_the_whole_model_equals_its_dense_mask_form(kind, kept):
    transformer, inputs = make_transformer(temporal_attention=kind), make_inputs(kept=kept)
    result = transformer(*inputs).sample
    rectangular = transformer(*inputs, num_masked_frames=5 - len(kept)).sample
    for module in transformer.modules():
        if isinstance(module, MarDiniIdentityAttention):
            module.set_processor(MarDiniDenseIdentityAttnProcessor())
    expected = transformer(*inputs).sample
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rectangular, expected, atol=1e-4, rtol=1e-4)


def test_rows_of_a_batch_are_independent_even_with_different_numbers_of_references():
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs(batch=3)
    mask[1] = torch.tensor([True, True, True, True, False])
    timestep = torch.tensor([10, 500, 999])
    together = transformer(latents, timestep, signals, mask).sample
    for row in range(3):
        rows = slice(row, row + 1)
        alone = transformer(latents[rows], timestep[rows], signals[rows], mask[rows]).sample
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-5)


def test_masked_frames_read_references_planning_signals_and_timestep():
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs(batch=1)
    latents.requires_grad_(), signals.requires_grad_()
    sample = transformer(latents, timestep, signals, mask).sample
    by_frame, by_plan = torch.autograd.grad(sample[:, 2].sum(), (latents, signals))
    assert (by_frame.abs().sum(dim=(2, 3, 4))[0] > 0).all()  # temporal attention: every frame
    assert by_plan[:, 2].abs().sum() > 0
    assert not torch.allclose(sample, transformer(latents, torch.tensor(100), signals, mask).sample, atol=1e-2)


@pytest.mark.parametrize("with_state", [False, True])
def test_one_query_of_a_frame_has_the_output_of_all_where_there_is_one_key(with_state, monkeypatch):
    """Forward and backward: parameters that only the queries read have a gradient of zero, not none."""
    transformer, (latents, timestep, _, mask) = make_transformer(), make_inputs()
    asked = []
    for block in transformer.transformer_blocks:
        block.cross_attn.register_forward_pre_hook(lambda m, args: asked.append(args[0].shape[2]))

    def learn() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        transformer.zero_grad()
        asked.clear()
        if with_state:
            state = transformer(latents, 0, None, mask, 3, return_window_state=True)
            sample = transformer(latents[:, 1:4], timestep, window_state=state).sample
        else:
            sample = transformer(latents, timestep, None, mask, 3).sample[:, 1:4]
        sample.square().sum().backward()
        return sample.detach(), {name: p.grad.clone() for name, p in transformer.named_parameters()}

    sample, grads = learn()
    assert set(asked) == {1}
    attend_one = MarDiniAttention.forward

    def attend_all(attn, hidden_states, rotary_emb, *rest):
        if attn.is_cross_attention:  # any other queries, at the places of a frame's tokens
            hidden_states = hidden_states + torch.randn(*hidden_states.shape[:2], 28, hidden_states.shape[3])
            rotary_emb = transformer.cross_rope(4, 6, 1, 1, hidden_states.device)[:2]
        return attend_one(attn, hidden_states, rotary_emb, *rest)

    monkeypatch.setattr(MarDiniAttention, "forward", attend_all)
    expected, expected_grads = learn()
    torch.testing.assert_close(sample, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, expected_grads, atol=1e-3, rtol=1e-4)
    silent = [name for name in grads if "norm3" in name or ("cross_attn" in name and ("_q" in name or "_k" in name))]
    assert len(silent) == 2 * 9 and all(grads[name].abs().max() < 1e-6 for name in silent)


def test_cross_attention_is_per_frame():
    # One block without attention across frames in between: the plan of frame 1 reaches frame 1 alone.
    transformer, (latents, timestep, signals, mask) = make_transformer(num_layers=1), make_inputs(batch=1)
    signals.requires_grad_()
    sample = transformer(latents, timestep, signals, mask).sample
    touched = torch.autograd.grad(sample[:, 1].sum(), signals)[0].abs().sum(dim=(2, 3, 4))[0] > 0
    assert touched.tolist() == [False, True, False, False, False]


def test_planning_signals_know_their_place():
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    moved = transformer(latents, timestep, signals.flip(2), mask).sample
    assert not torch.allclose(transformer(latents, timestep, signals, mask).sample, moved, atol=1e-2)


def test_timesteps_of_reference_frames_are_ignored_and_all_forms_of_a_timestep_agree():
    transformer, (latents, _, signals, mask) = make_transformer(), make_inputs()
    expected = transformer(latents, torch.tensor(500), signals, mask).sample
    per_frame = torch.full((2, 5), 500).masked_fill(mask, 123)
    for timestep in (torch.full((2,), 500), torch.full((2, 5), 500), per_frame, torch.tensor([500.0]), 500):
        torch.testing.assert_close(transformer(latents, timestep, signals, mask).sample, expected)


def test_the_signal_of_no_plan_is_learned():
    transformer, (latents, timestep, _, mask) = make_transformer(), make_inputs()
    before = transformer(latents, timestep, None, mask).sample
    with torch.no_grad():
        transformer.unconditional_planning_signal.mul_(-1)
    assert not torch.allclose(transformer(latents, timestep, None, mask).sample, before, atol=1e-2)


def test_frames_know_their_place_in_time():
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    latents[:, 2], signals[:, 2] = latents[:, 1], signals[:, 1]  # both masked, one nearer to the first frame
    sample = transformer(latents, timestep, signals, mask).sample
    assert not torch.allclose(sample[:, 1], sample[:, 2], atol=1e-2)


@pytest.mark.parametrize("axis", [-2, -1])
def test_tokens_know_their_place_in_the_frame(axis):
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    sample = transformer(latents, timestep, signals, mask).sample
    plan_axis = {-2: 2, -1: 3}[axis]
    flipped = transformer(latents.flip(axis), timestep, signals.flip(plan_axis), mask).sample
    assert not torch.allclose(flipped, sample.flip(axis), atol=1e-2)


def test_rows_without_a_plan_equal_the_unconditional_branch():
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    planned, unplanned = (transformer(latents, timestep, s, mask).sample for s in (signals, None))
    mixed = transformer(latents, timestep, signals, mask, planning_signals_mask=torch.tensor([True, False])).sample
    torch.testing.assert_close(mixed[0], planned[0])
    torch.testing.assert_close(mixed[1], unplanned[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(planned, unplanned, atol=1e-2)


def test_the_swap_of_attention_keeps_the_weights_and_is_saved(tmp_path):
    transformer, inputs = make_transformer(temporal_attention="spatiotemporal"), make_inputs()
    before = transformer(*inputs).sample
    names = transformer.state_dict().keys()
    transformer.set_temporal_attention("temporal")
    after = transformer(*inputs).sample
    assert transformer.state_dict().keys() == names and not torch.allclose(before, after, atol=1e-2)
    transformer.save_pretrained(tmp_path)
    loaded = MarDiniTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.config.temporal_attention == "temporal"
    assert torch.equal(loaded(*inputs).sample, after)


@pytest.mark.parametrize("height, width, patch_size", [(4, 8, 1), (8, 4, 2), (4, 4, 4)])
def test_any_resolution_that_the_patch_divides(height, width, patch_size):
    inputs = make_inputs(height=height, width=width)
    transformer = make_transformer(patch_size=patch_size)
    sample = transformer(*inputs).sample
    assert sample.shape == inputs[0].shape
    assert torch.equal(transformer(*inputs, return_dict=False)[0], sample)


def test_a_new_model_predicts_zero_and_its_blocks_change_nothing():
    torch.manual_seed(0)
    transformer = MarDiniTransformer3DModel(
        in_channels=4, patch_size=1, num_layers=2, num_attention_heads=2, attention_head_dim=8, mlp_dim=32, planning_dim=12,
        latent_skip=True,
    )  # fmt: skip
    inputs = make_inputs()
    assert (transformer(*inputs).sample == 0).all()
    states = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))
    assert torch.equal(last_block_states(transformer, *inputs), states[0])
    handle.remove()


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs, gradients = make_inputs(), []
    for checkpointing in (False, True):
        transformer = make_transformer()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        runs = []
        transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        transformer(*inputs, num_masked_frames=3).sample.square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append({name: p.grad for name, p in transformer.named_parameters()})
    # Every parameter is used but the one that stands in for a missing plan.
    assert [name for name, gradient in gradients[0].items() if gradient is None] == ["unconditional_planning_signal"]
    for name, plain in gradients[0].items():
        if plain is not None:
            assert plain.abs().sum() > 0, name
            torch.testing.assert_close(plain, gradients[1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_masked_frames", [None, 3])
@pytest.mark.parametrize("planned", [True, False])
def test_compiles_as_one_graph(num_masked_frames, planned):
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    arguments = (latents, timestep, signals if planned else None, mask, num_masked_frames)
    compiled = torch.compile(transformer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments).sample, transformer(*arguments).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_stay_finite(tmp_path, dtype):
    transformer, (latents, timestep, signals, mask) = make_transformer(), make_inputs()
    transformer.save_pretrained(tmp_path)
    half = MarDiniTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    block = half.transformer_blocks[0]
    norms = (block.norm2, block.norm3, block.attn.norm_q, block.temporal_attn.norm_k, block.cross_attn.norm_q)
    assert {norm.weight.dtype for norm in norms} == {torch.float32} and half.patch_embed.weight.dtype == dtype
    for plan in (signals.to(dtype), None):
        sample = half(latents.to(dtype), timestep, plan, mask).sample
        assert sample.dtype == dtype and torch.isfinite(sample).all()


def test_layerwise_casting_runs():
    transformer, inputs = make_transformer(), make_inputs()
    expected = transformer(*inputs).sample
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert transformer.time_embed.linear_1.weight.dtype == torch.float32
    sample = transformer(*inputs).sample
    assert torch.isfinite(sample).all() and not torch.equal(sample, expected)


@pytest.mark.parametrize("backend", ["_native_math", "native"])
def test_attention_backends_agree(backend):
    transformer, inputs = make_transformer(), make_inputs()
    expected = transformer(*inputs).sample
    transformer.set_attention_backend(backend)
    torch.testing.assert_close(transformer(*inputs).sample, expected, atol=1e-5, rtol=1e-5)


def test_blocks_are_known_to_the_caches_of_diffusers():
    metadata = TransformerBlockRegistry.get(MarDiniTransformerBlock)
    assert metadata.return_hidden_states_index == 0 and metadata.return_encoder_hidden_states_index is None
    for config in (
        FirstBlockCacheConfig(threshold=0.1),
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(0, 1000),
            current_timestep_callback=lambda: 500,
        ),
    ):  # fmt: skip
        transformer, inputs = make_transformer(), make_inputs()
        expected = transformer(*inputs).sample
        transformer.enable_cache(config)
        with transformer.cache_context("cond"):
            torch.testing.assert_close(transformer(*inputs).sample, expected)  # nothing is reused in a first call
        transformer.disable_cache()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_states": torch.zeros(2, 5, 3, 4, 6)}, "3 channels in dimension 2"),
        ({"timestep": torch.zeros(3)}, r"`timestep` has shape \(3,\).*\(2,\).*\(2, 5\)"),
        ({"reference_timestep": torch.zeros(3)}, r"`reference_timestep` has shape \(3,\).*\(2,\).*\(2, 5\)"),
        ({"planning_signals": torch.zeros(2, 4, 2, 3, 12)}, "output for the same window"),
        ({"planning_signals": torch.zeros(2, 5, 2, 3, 16)}, "`planning_dim=12`"),
        ({"reference_mask": torch.zeros(2, 5)}, "expected torch.bool"),
        ({"num_masked_frames": 0}, "expected 1 to 5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    names = ("hidden_states", "timestep", "planning_signals", "reference_mask")
    with pytest.raises(ValueError, match=message):
        make_transformer()(**{**dict(zip(names, make_inputs(), strict=True)), **change})


def test_unknown_attention_across_frames_is_refused():
    with pytest.raises(ValueError, match="'causal'; accepted are"):
        make_transformer(temporal_attention="causal")


def test_attention_that_was_set_is_that_of_a_model_made_from_the_configuration():
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16, "planning_dim": 16}
    model = MarDiniTransformer3DModel(**size)
    model.set_temporal_attention("spatiotemporal")
    assert MarDiniTransformer3DModel.from_config(model.config).config.temporal_attention == "spatiotemporal"


@pytest.mark.parametrize("mask", [torch.ones(1, dtype=torch.bool), torch.ones(2), torch.ones(2, 1, dtype=torch.bool)])
def test_a_mask_of_plans_has_a_boolean_for_each_row(mask):
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16, "planning_dim": 16}
    model = MarDiniTransformer3DModel(in_channels=4, patch_size=1, **size)
    given = torch.tensor([[True, False, False]] * 2)
    with pytest.raises(ValueError, match=r"expected booleans shaped \(2,\), one for each row"):
        model(torch.zeros(2, 3, 4, 2, 2), 500, torch.zeros(2, 3, 1, 1, 16), given, planning_signals_mask=mask)
