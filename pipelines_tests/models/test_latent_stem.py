"""Convolutions at the resolution of the latents around the trunk: nothing at the start, and reference frames stay
independent."""

import pytest
import torch

from diffusers_mardini import MarDiniTransformer3DModel
from pipelines_tests.models.test_transformer_mardini import KINDS, make_inputs, make_transformer
from pipelines_tests.models.test_window_state import MASKS, masked_frames, state_of


STEM = {"stem_channels": 16, "stem_blocks": 2, "patch_size": 2}


def make_stemmed(**overrides):
    return make_transformer(**{**STEM, **overrides})


def untouched(**overrides):
    sizes = {"in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 32}
    return MarDiniTransformer3DModel(**{**sizes, "planning_dim": 12, **STEM, **overrides})


def test_the_papers_embedding_has_no_stem():
    names = dict(untouched(stem_channels=0).named_parameters())
    assert not any(name.startswith(("stem", "head")) for name in names)
    assert names["patch_embed.weight"].shape[1] == 4 * 2**2


def test_patches_are_cut_from_the_features_of_the_stem():
    model = untouched()
    assert model.patch_embed.in_features == model.proj_out.out_features == 16 * 2**2
    latents, timestep, signals, mask = make_inputs()
    assert model(latents, timestep, signals, mask).sample.shape == latents.shape


def test_the_velocity_is_zero_at_the_start_and_every_weight_can_learn():
    model = untouched()
    assert model(*make_inputs()).sample.abs().max() == 0
    torch.nn.init.normal_(model.head.conv_out.weight)  # after the first step
    for block in [*model.stem.blocks, *model.head.blocks]:
        torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(model.proj_out.weight)
    model(*make_inputs()).sample.square().sum().backward()
    parameters = [(n, p) for n, p in model.named_parameters() if n.startswith(("stem", "head", "patch_embed"))]
    assert parameters and all(p.grad is not None and p.grad.abs().max() > 0 for _, p in parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKS)
def test_masked_frames_alone_equal_the_whole_window(kind, name):
    model, (latents, _, signals, _) = make_stemmed(temporal_attention=kind), make_inputs(batch=3)
    mask = MASKS[name]
    state = state_of(model, latents, signals, mask)
    for timestep in (torch.tensor(999), torch.tensor([3, 500, 998])):
        noisy = torch.where(mask[:, :, None, None, None], latents, torch.randn_like(latents))
        expected = masked_frames(model(noisy, timestep, signals, mask).sample, mask)
        result = model(masked_frames(noisy, mask), timestep, window_state=state).sample
        torch.testing.assert_close(result, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_the_velocity_of_a_frame_does_not_depend_on_another_masked_frames_convolutions():
    """The stem looks at one frame at a time: with attention across frames cut off, frames are independent."""
    model = make_stemmed()
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.temporal_attn.to_out[0].weight)
    latents, timestep, signals, mask = make_inputs()
    other = latents.clone()
    other[:, 1] = torch.randn_like(other[:, 1])
    before, after = (model(each, timestep, signals, mask).sample for each in (latents, other))
    assert torch.equal(before[:, 2:4], after[:, 2:4]) and not torch.allclose(before[:, 1], after[:, 1])


def test_a_saved_model_is_the_same_again(tmp_path):
    model = make_stemmed()
    model.save_pretrained(tmp_path)
    again = MarDiniTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(model(*make_inputs()).sample, again(*make_inputs()).sample)
