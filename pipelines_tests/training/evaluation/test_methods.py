"""Find kept frames again by the settings that they were sampled with."""

from diffusers import UniPCMultistepScheduler

from diffusers_mardini import MarDiniScheduler
from training.evaluation.methods import sampling_key


def test_a_sampler_has_one_key_whatever_the_order_of_its_defaults():
    first, other = (UniPCMultistepScheduler.from_config(MarDiniScheduler().config) for _ in range(2))
    defaults = list(first.config["_use_default_values"])
    assert len(defaults) > 1  # diffusers lists a set, in an order of each process
    other._internal_dict = type(other.config)({**other.config, "_use_default_values": defaults[::-1]})
    assert list(other.config["_use_default_values"]) != defaults
    assert sampling_key(first, 10) == sampling_key(other, 10)
    assert sampling_key(first, 10) != sampling_key(first, 5)
    assert sampling_key(first, 10) != sampling_key(MarDiniScheduler(), 10)
