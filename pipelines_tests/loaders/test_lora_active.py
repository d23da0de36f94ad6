"""Active adapters are the same in both models and as reported; models with adapters are not saved."""

import pytest
import torch
from peft import LoraConfig

from diffusers_mardini.models.lora_scale import lora_scale
from pipelines_tests.loaders.adapters import BOTH, TARGETS, differ, run, save_adapter
from pipelines_tests.tiny_pipeline import clip, tiny_pipeline


@pytest.fixture(scope="module")
def transformer_only(tmp_path_factory):
    path = tmp_path_factory.mktemp("transformer_only")
    save_adapter(path, ("transformer",), seed=2)
    return path


@pytest.fixture
def loaded(pipe, folder, transformer_only):
    """First `a` of both models, then `b` of the transformer alone."""
    pipe.load_lora_weights(folder, adapter_name="a")
    pipe.load_lora_weights(transformer_only, adapter_name="b")
    return pipe


@pytest.fixture(scope="module")
def only_b(transformer_only):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(transformer_only)
    return run(pipe)


@pytest.fixture(scope="module")
def only_a(folder):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(folder)
    return run(pipe)


def close(first, second) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4)


def test_a_new_adapter_of_one_model_is_the_only_one_in_both(loaded, only_b):
    assert loaded.get_active_adapters() == ["b"]
    assert loaded.get_list_adapters() == {"planner": ["a"], "transformer": ["a", "b"]}
    assert close(run(loaded), only_b)


def test_choosing_an_adapter_of_one_model_rests_the_others_of_both(loaded, only_a, only_b):
    loaded.set_adapters("a")
    assert loaded.get_active_adapters() == ["a"] and close(run(loaded), only_a)
    loaded.set_adapters("b")
    assert loaded.get_active_adapters() == ["b"] and close(run(loaded), only_b)
    loaded.set_adapters(["b", "a"], [0.5, 0.25])
    assert loaded.get_active_adapters() == ["b", "a"]
    layers = [getattr(loaded, name).transformer_blocks[0].attn.to_q for name in BOTH]
    assert [layer.scaling for layer in layers] == [{"a": 0.5}, {"a": 0.5, "b": 0.5}]  # alpha of `a` is 8, of rank 4
    loaded.set_adapters([])
    assert loaded.get_active_adapters() == [] and close(run(loaded), run(tiny_pipeline()))


def test_disabled_adapters_are_not_reported_as_active(loaded, base, only_b):
    loaded.disable_lora()
    assert loaded.get_active_adapters() == [] and close(run(loaded), base)
    loaded.enable_lora()
    assert loaded.get_active_adapters() == ["b"] and close(run(loaded), only_b)


def test_loading_while_others_are_disabled_enables_the_new_one_alone(pipe, folder, transformer_only, only_b):
    pipe.load_lora_weights(folder, adapter_name="a")
    pipe.disable_lora()
    pipe.load_lora_weights(transformer_only, adapter_name="b")
    assert pipe.get_active_adapters() == ["b"] and close(run(pipe), only_b)
    pipe.disable_lora()
    config = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    pipe.transformer.add_adapter(config, "new")
    assert pipe.get_active_adapters() == ["new"] and differ(run(pipe), run(tiny_pipeline()))


def test_after_the_active_one_is_deleted_the_first_left_runs_in_both_models(loaded, only_a):
    loaded.delete_adapters("b")
    assert loaded.get_active_adapters() == ["a"] and close(run(loaded), only_a)


def test_deleting_one_that_rests_changes_nothing(loaded, only_b):
    loaded.delete_adapters(["a"])
    assert loaded.get_list_adapters() == {"transformer": ["b"]} and close(run(loaded), only_b)
    assert type(loaded.planner.transformer_blocks[0].attn.to_q) is torch.nn.Linear


def test_names_and_weights_that_cannot_be_used_are_refused(loaded, only_b):
    for call, message in [
        (lambda: loaded.set_adapters("typo"), "'typo' not in the list of present adapters: 'a', 'b'"),
        (lambda: loaded.delete_adapters(["a", "typo"]), "'typo' not in the list of present adapters"),
        (lambda: loaded.transformer.delete_adapters("typo"), "'typo' not in the list of present adapters"),
        (lambda: loaded.set_lora_device(["typo"], "cpu"), "'typo' not in the list of present adapters"),
        (lambda: loaded.set_adapters(["a", "a"]), "named twice"),
        (lambda: loaded.set_adapters("a", float("nan")), "is nan; expected a finite number"),
        (lambda: loaded.set_adapters(["a", "b"], ["1", 2]), "is '1'; expected a finite number"),
        (lambda: loaded.set_adapters("a", {"planner": float("inf")}), "is inf; expected a finite number"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert loaded.get_active_adapters() == ["b"] and close(run(loaded), only_b)


def test_wrapped_models_are_refused_where_they_would_be_passed_over(loaded):
    loaded.transformer = torch.compile(loaded.transformer, backend="eager")
    for call in (loaded.disable_lora, loaded.enable_lora):
        with pytest.raises(ValueError, match="wrapped by `torch.compile`"):
            call()
    assert loaded.get_list_adapters() == {"planner": ["a"], "transformer": ["a", "b"]}
    assert loaded.get_active_adapters() == ["b"]


# The weight of one call


@pytest.mark.parametrize("scale", ["0.5", float("nan"), float("inf"), [1], object()])
def test_a_scale_that_is_no_finite_number_is_refused_by_the_models(loaded, scale):
    latents, mask = clip(3).new_zeros(1, 3, 16, 2, 2), torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match='`attention_kwargs\\["scale"\\]` is .*; expected a finite number'):
        loaded.planner(latents, mask, attention_kwargs={"scale": scale})
    with pytest.raises(ValueError, match="expected a dictionary"):
        loaded.planner(latents, mask, attention_kwargs=[("scale", 1)])


def test_a_scale_is_any_number_and_none_is_one():
    assert [lora_scale(given) for given in (None, {}, {"scale": None}, {"scale": torch.tensor(0.5)})] == [1, 1, 1, 0.5]


# Saving


@pytest.mark.parametrize("part", BOTH)
@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub"])
def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(pipe, folder, tmp_path, part, method):
    pipe.load_lora_weights(folder, adapter_name="a")
    model, target = getattr(pipe, part), tmp_path / "model"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"adapters are loaded: a \(MarDini.*unload_lora_weights"):
            getattr(model, method)(str(target))
        assert not target.exists()
        if not pipe.num_fused_loras:
            pipe.fuse_lora()
    pipe.unload_lora_weights()
    model.save_pretrained(target)
    saved = type(model).from_pretrained(target)
    assert all(map(torch.equal, saved.state_dict().values(), model.state_dict().values()))


def test_a_model_whose_last_adapter_was_deleted_is_saved_with_plain_names(pipe, folder, tmp_path):
    pipe.transformer.load_lora_adapter(folder, prefix="transformer", adapter_name="a")
    pipe.transformer.delete_adapters("a")
    pipe.transformer.save_pretrained(tmp_path)
    saved = type(pipe.transformer).from_pretrained(tmp_path)
    assert all(map(torch.equal, saved.state_dict().values(), pipe.transformer.state_dict().values()))


def test_the_pipeline_still_saves_models_as_it_is_told(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.fp16.safetensors").exists()
