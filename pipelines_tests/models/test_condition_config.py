"""Conditions in the configuration of a model: read, refused, saved, loaded, and added to a checkpoint without."""

import json

import pytest
import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.models.conditions import read_config
from pipelines_tests.models.test_conditions import CONDITIONS, INFO, call, make_models, told, told_models
from pipelines_tests.models.test_transformer_mardini import make_inputs


NEW = {
    f"condition_embedder.{name}.{tensor}"
    for name in CONDITIONS
    for tensor in ("null", "linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
}


def test_a_saved_model_tells_names_units_and_ranges_and_loads_as_it_was(tmp_path):
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["conditions"] == CONDITIONS and config["condition_info"] == INFO
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(call(loaded, latents, mask, told(), signals), call(model, latents, mask, told(), signals))
        built = type(model).from_config(loaded.config)
        assert built.state_dict().keys() == model.state_dict().keys()


def test_the_order_of_names_is_of_no_importance():
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        turned = type(model).from_config(model.config, conditions=dict(reversed(CONDITIONS.items())))
        turned.load_state_dict(model.state_dict())
        assert torch.equal(call(turned, latents, mask, told(), signals), call(model, latents, mask, told(), signals))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_gains_conditions_and_does_what_it_did(tmp_path, dtype):
    latents, _, signals, mask = make_inputs()
    latents, signals = latents.to(dtype), signals.to(dtype)
    for model in make_models():
        model.save_pretrained(tmp_path)
        plain = type(model).from_pretrained(tmp_path, dtype=dtype)
        gained = type(model).from_pretrained(tmp_path, dtype=dtype, conditions=CONDITIONS, condition_info=INFO)
        assert set(gained.state_dict()) - set(plain.state_dict()) == NEW
        assert {p.dtype for p in gained.condition_embedder.parameters()} == {dtype}
        assert not gained.training and not any(module.training for module in gained.modules())
        assert torch.equal(call(gained, latents, mask, told(), signals), call(plain, latents, mask, signals=signals))
        for embedding in gained.condition_embedder.values():
            assert embedding.linear_1.weight.abs().sum() > 0  # or nothing would ever be learned
            assert not any(p.any() for p in (*embedding.linear_2.parameters(), embedding.null))
        gained.save_pretrained(tmp_path / "gained")
        again = type(model).from_pretrained(tmp_path / "gained")
        assert again.config.conditions == CONDITIONS and set(again.state_dict()) == set(gained.state_dict())
        assert type(model).from_config(gained.config).condition_embedder is not None


def test_a_checkpoint_with_conditions_gains_more_and_keeps_what_it_learned(tmp_path):
    latents, _, signals, mask = make_inputs()
    for model in told_models():
        model.save_pretrained(tmp_path)
        info = {"action": {"unit": "shares", **INFO["action"]}}
        more, loading = type(model).from_pretrained(
            tmp_path, conditions={"action": 3, "motion": 1}, condition_info=info, output_loading_info=True
        )
        assert more.config.conditions == {**CONDITIONS, "motion": 1} and not loading["missing_keys"]
        assert more.config.condition_info == {**INFO, **info}
        assert more.condition_embedder["action"].condition.unit == "shares"
        expected = call(model, latents, mask, told(), signals)
        result = call(more, latents, mask, {**told(), "motion": torch.rand(2, 5, 1)}, signals)
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)
        with pytest.raises(ValueError, match=r"`conditions\['action'\]` is 2, but this model has .* with 3 channels"):
            more.add_conditions({"action": 2})
        with pytest.raises(ValueError, match="give a mapping of names to numbers of channels"):
            type(model).from_pretrained(tmp_path, conditions=["motion"])


BAD = {
    "no mapping": (["action"], None, "give a mapping of names to numbers of channels"),
    "no channels": ({"action": 0}, None, r"`conditions\['action'\]` is 0; give its number of channels"),
    "channels that are no number": ({"action": True}, None, "is True; give its number of channels"),
    "a dot": ({"left.wheel": 1}, None, "has the name 'left.wheel'; choose another"),
    "an attribute of modules": ({"type": 1}, None, "has the name 'type'; choose another"),
    "what is not there": ({"action": 1}, {"rate": {}}, "describes rate, which `conditions` does not name"),
    "a fact that nobody knows": ({"rate": 1}, {"rate": {"units": "s"}}, "has units; it may have: names.*unit: text"),
    "names": ({"action": 2}, {"action": {"names": ["a"]}}, r"is \['a'\]; give a list with a name for each .*2 here"),
    "unit": ({"rate": 1}, {"rate": {"unit": 1}}, r"`condition_info\['rate'\]\['unit'\]` is 1; give text"),
    "interval": ({"rate": 1}, {"rate": {"interval": "last"}}, "is 'last'; give one of mean, sum"),
    "an empty range": ({"rate": 1}, {"rate": {"range": [1, 1]}}, r"is \[1, 1\]; give \[lowest, highest\]"),
    "an endless range": ({"rate": 1}, {"rate": {"range": [0, float("inf")]}}, r"give \[lowest, highest\]"),
    "a range too few": ({"action": 3}, {"action": {"range": [[0, 1], [0, 1]]}}, "one for each channel .3 here"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_configuration_cannot_say_is_refused(name):
    conditions, info, message = BAD[name]
    for model in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        with pytest.raises(ValueError, match=message):
            model(
                num_layers=1, num_attention_heads=1, attention_head_dim=4, conditions=conditions, condition_info=info
            )


def test_a_condition_is_told_in_a_line():
    conditions = read_config(
        {"action": 2, "rate": 1, "motion": 1, "view": 2},
        {
            "action": {"names": ["steering", "gas"], "range": [[-1, 1], [0, 1]], "unit": "shares"},
            "rate": {"range": [0.04, 0.16], "unit": "s"},
            "view": {"range": [[0, 1], [0, 2]]},
        },
    )
    assert [str(condition) for condition in conditions.values()] == [
        "action: 2 channels (steering -1 to 1, gas 0 to 1), in shares",
        "motion: 1 channel",
        "rate: 1 channel, 0.04 to 0.16, in s",
        "view: 2 channels (channel 0 0 to 1, channel 1 0 to 2)",
    ]
