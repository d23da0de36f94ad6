"""Sec. 2.2: what the planner may and may not know."""

import pytest
import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel
from diffusers_mardini.models import identity_attention


def make_planner(**overrides):
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 32}
    planner = MarDiniPlannerTransformer3DModel(**{**sizes, "rope_theta": 100.0, **overrides})
    for name, parameter in planner.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return planner


def make_window(batch=2, frames=5, kept=(0, 4), height=3, width=4):
    torch.manual_seed(1)
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    mask[:, list(kept)] = True
    return torch.randn(batch, frames, 4, height, width), mask


@pytest.mark.parametrize("num_masked_frames", [None, 3])
@pytest.mark.parametrize("junk", [1e4, float("nan"), float("inf")])
def test_what_stands_at_masked_frames_has_no_influence_even_nan(junk, num_masked_frames):
    planner, (latents, mask) = make_planner(), make_window()
    expected = planner(latents, mask, num_masked_frames).planning_signals
    spoiled = latents.clone()
    spoiled[~mask] = junk
    result = planner(spoiled, mask, num_masked_frames).planning_signals
    assert torch.equal(result, expected)
    result.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in planner.parameters())


def test_reference_signals_depend_on_their_own_frame_alone():
    planner, (latents, mask) = make_planner(), make_window(batch=1)
    latents.requires_grad_()
    signals = planner(latents, mask).planning_signals
    gradient = torch.autograd.grad(signals[:, 4].sum(), latents)[0].abs().sum(dim=(2, 3, 4))[0]
    assert gradient[4] > 0 and (gradient[:4] == 0).all()


def test_masked_signals_depend_on_every_reference_frame_and_on_their_place():
    planner, (latents, mask) = make_planner(), make_window(batch=1, kept=(0, 2, 4))
    latents.requires_grad_()
    signals = planner(latents, mask).planning_signals
    gradient = torch.autograd.grad(signals[:, 1].sum(), latents)[0].abs().sum(dim=(2, 3, 4))[0]
    assert (gradient[[0, 2, 4]] > 0).all() and (gradient[[1, 3]] == 0).all()
    assert not torch.allclose(signals[:, 1], signals[:, 3], atol=1e-3)


def test_masked_tokens_attend_to_all_places_of_all_frames(monkeypatch):
    planner, (latents, mask) = make_planner(), make_window(batch=1)  # 12 patches and [NEXT] at each row's end
    keys, attend = [], identity_attention.attend
    monkeypatch.setattr(
        identity_attention, "attend", lambda q, k, v, *a, **kw: (keys.append(k.shape[1]), attend(q, k, v, *a, **kw))[1]
    )
    planner(latents, mask, 3)
    assert max(keys) == 5 * (12 + 3)


@pytest.mark.parametrize("axis", [-2, -1])
def test_tokens_know_their_place_in_the_frame(axis):
    planner, (latents, mask) = make_planner(), make_window()
    signals = planner(latents, mask).planning_signals
    plan_axis = {-2: 2, -1: 3}[axis]
    flipped = planner(latents.flip(axis), mask).planning_signals
    assert not torch.allclose(flipped, signals.flip(plan_axis), atol=1e-2)


def test_rows_of_a_batch_are_independent():
    planner, (latents, mask) = make_planner(), make_window(batch=3)
    mask[1] = torch.tensor([True, False, True, True, False])
    together = planner(latents, mask).planning_signals
    for row in range(3):
        alone = planner(latents[row : row + 1], mask[row : row + 1]).planning_signals
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("height, width, patch_size", [(2, 6, 1), (6, 2, 2), (4, 4, 4)])
def test_any_resolution_that_the_patch_divides(height, width, patch_size):
    planner, (latents, mask) = make_planner(patch_size=patch_size), make_window(height=height, width=width)
    signals = planner(latents, mask).planning_signals
    assert signals.shape == (2, 5, height // patch_size, width // patch_size, 16)
    assert torch.equal(planner(latents, mask, return_dict=False)[0], signals)


def test_the_next_token_tells_shapes_of_equal_area_apart():
    planner = make_planner()
    latents, mask = make_window(height=2, width=6)
    wide = planner(latents, mask).planning_signals.flatten(2, 3)
    tall = planner(latents.reshape(2, 5, 4, 6, 2), mask).planning_signals.flatten(2, 3)
    assert not torch.allclose(wide, tall, atol=1e-2)


def test_gradient_checkpointing_gives_the_same_gradients():
    latents, mask = make_window()
    gradients = []
    for checkpointing in (False, True):
        planner = make_planner()
        if checkpointing:
            planner.enable_gradient_checkpointing()
        runs = []
        planner.transformer_blocks[0].norm1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        planner(latents, mask, 3).planning_signals.square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append([p.grad for p in planner.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("num_masked_frames", [None, 3])
def test_compiles_as_one_graph(num_masked_frames):
    planner, (latents, mask) = make_planner(), make_window()
    expected = planner(latents, mask, num_masked_frames).planning_signals
    compiled = torch.compile(planner, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(latents, mask, num_masked_frames).planning_signals, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_stay_finite_and_keep_norms_in_float32(tmp_path, dtype):
    planner, (latents, mask) = make_planner(), make_window()
    planner.save_pretrained(tmp_path)
    half = MarDiniPlannerTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert half.norm_out.weight.dtype == torch.float32 and half.patch_embed.weight.dtype == dtype
    signals = half(latents.to(dtype), mask).planning_signals
    assert signals.dtype == dtype and torch.isfinite(signals).all()
    torch.testing.assert_close(signals.float(), planner(latents, mask).planning_signals, atol=0.2, rtol=0.2)


def test_save_and_load_in_shards_gives_the_same_model(tmp_path):
    planner, (latents, mask) = make_planner(), make_window()
    planner.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = MarDiniPlannerTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(latents, mask).planning_signals, planner(latents, mask).planning_signals)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, m: (x[0], m), "expected 5 dimensions"),
        (lambda x, m: (x[:, :, :3], m), "3 channels in dimension 2, but this model takes 4"),
        (lambda x, m: (x, m.float()), "expected torch.bool"),
        (lambda x, m: (x, m[:, :4]), r"expected torch.bool of shape \(2, 5\)"),
        (lambda x, m: (x, m, 6), "`num_masked_frames` is 6; expected 1 to 5"),
    ],
)
def test_windows_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_planner()(*change(*make_window()))


def test_head_channels_must_serve_two_rotary_axes():
    with pytest.raises(ValueError, match="divisible by 4"):
        make_planner(attention_head_dim=6)
