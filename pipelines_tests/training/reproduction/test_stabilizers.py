"""Other stabilizers than identity attention: what they do to models, and that nobody else's models have them."""

import pytest
import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from training.engine.ema import AveragedWeights
from training.reproduction.stabilizers import TokenBatchNorm, main, stabilized


SIZE = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "mlp_dim": 32, "in_channels": 4}
MASK = torch.tensor([[True, False, False, True]])


def planner(**changes):
    torch.manual_seed(0)
    return MarDiniPlannerTransformer3DModel(**{**SIZE, "identity_attention": False, **changes})


def transformer():
    model = MarDiniTransformer3DModel(**SIZE, patch_size=1, planning_dim=32, identity_attention=False)
    for name, parameter in model.named_parameters():
        if name != "reference_mark":  # at the start all blocks are gated away
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    return model


def latents():
    return torch.randn(1, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_marks_change_nothing_at_the_start_and_then_only_what_reference_frames_say():
    plain = planner().eval()(latents(), MASK).planning_signals
    with stabilized(marks=True):
        marked = planner().eval()
    torch.testing.assert_close(marked(latents(), MASK).planning_signals, plain)
    marked.reference_mark.data += 1
    assert (marked(latents(), MASK).planning_signals - plain).abs().amax() > 1e-3
    nothing_given = torch.zeros_like(MASK)
    torch.testing.assert_close(
        marked(latents(), nothing_given).planning_signals, planner().eval()(latents(), nothing_given).planning_signals
    )


def test_the_transformer_is_marked_wherever_its_mask_is_given():
    plain = transformer().eval()(latents(), torch.tensor([500]), None, MASK).sample
    with stabilized(marks=True):
        marked = transformer().eval()
    torch.testing.assert_close(marked(latents(), torch.tensor([500]), None, MASK).sample, plain)
    marked.reference_mark.data += 1
    by_place = marked(latents(), torch.tensor([500]), None, MASK).sample
    assert (by_place - plain).abs().amax() > 1e-3
    torch.testing.assert_close(marked(latents(), torch.tensor([500]), reference_mask=MASK).sample, by_place)
    with pytest.raises(ValueError, match="marks need the whole window"):
        marked(latents(), torch.tensor([500]), None, None)


def test_batch_normalization_takes_the_batch_in_training_and_its_averages_in_sampling():
    norm = TokenBatchNorm(3)
    tokens = 4 + 2 * torch.randn(5, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    normed = norm.train()(tokens)
    torch.testing.assert_close(normed.mean(dim=(0, 1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(dim=(0, 1, 2)), torch.ones(3), atol=1e-2, rtol=0)
    for _ in range(80):
        norm(tokens)
    torch.testing.assert_close(norm.eval()(tokens), normed, atol=2e-2, rtol=0)
    half = norm(tokens[:2])
    torch.testing.assert_close(half, norm(tokens)[:2])  # no longer the batch's own


def test_the_averages_are_saved_and_averaged_but_not_learned():
    with stabilized(batch_norm=True):
        model = planner().train()
    averages = AveragedWeights(model, 0.5)
    model(latents(), MASK).planning_signals.sum().backward()
    norm = model.transformer_blocks[0].norm2
    assert norm.running_mean.grad is None and norm.weight.grad is not None
    assert norm.running_mean.abs().sum() > 0
    averages.update()
    assert averages.tensors["transformer_blocks.0.norm2.running_mean"].abs().sum() > 0


def test_a_stabilized_model_is_loaded_with_the_same_stabilizers_and_by_nothing_else(tmp_path):
    with stabilized(batch_norm=True, marks=True):
        model = planner().eval()
        model.reference_mark.data += 1
        model.save_pretrained(tmp_path)
        again = MarDiniPlannerTransformer3DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        again(latents(), MASK).planning_signals, model(latents(), MASK).planning_signals
    )  # the loaded one's hooks are its own
    with pytest.raises(ValueError, match="reference_mark"):
        MarDiniPlannerTransformer3DModel.from_pretrained(tmp_path)
    assert not hasattr(planner(), "reference_mark")


def test_identity_attention_is_not_stabilized_and_a_program_is_asked_for(capsys):
    with stabilized(marks=True), pytest.raises(ValueError, match="set `identity_attention: false`"):
        planner(identity_attention=True)
    with pytest.raises(SystemExit):
        main(["--marks"])
    assert "give the program to run" in capsys.readouterr().err
