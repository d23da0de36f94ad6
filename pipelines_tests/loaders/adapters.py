"""Adapters of both models at toy size, for the tests of LoRA."""

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.models.adapter_conditions import condition_parameters
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


BOTH = ("planner", "transformer")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CONDITIONS = {"action": 2}
INFO = {"action": {"names": ["steer", "gas"], "range": [[-1, 1], [0, 1]], "unit": "shares"}}


def run(pipe, **kwargs) -> torch.Tensor:
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=2, output_type="latent", generator=seeded(), **kwargs
    ).frames


def save_adapter(folder, components=BOTH, seed=0, rank=4, alpha=4, metadata=True, **saving):
    """Writes an adapter as the trainer does: added to the models of a pipeline, then saved."""
    pipe = tiny_pipeline()
    torch.manual_seed(seed)
    layers, configs = {}, {}
    for name in components:
        model = getattr(pipe, name)
        config = {"r": rank, "lora_alpha": alpha, "target_modules": TARGETS, "init_lora_weights": False}
        model.add_adapter(LoraConfig(**{**config, **saving.pop("config", {})}), adapter_name="new")
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="new")
        if metadata:
            configs[f"{name}_lora_adapter_metadata"] = model.peft_config["new"].to_dict()
    MarDiniPipeline.save_lora_weights(folder, **layers, **configs, **saving)
    return pipe


def save_conditioned(folder, conditions=CONDITIONS, info=INFO, seed=0):
    """Writes an adapter with conditions as a training loop does; returns the pipeline that it was added to."""
    pipe, layers = tiny_pipeline(), {}
    torch.manual_seed(seed)
    for name in BOTH:
        model = getattr(pipe, name)
        config = LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False)
        model.add_adapter(config, "new", conditions, info)
        added = condition_parameters(model, "new")
        for parameter in added.values():
            torch.nn.init.normal_(parameter, std=0.5)
        layers[f"{name}_lora_layers"] = {**get_peft_model_state_dict(model, adapter_name="new"), **added}
    MarDiniPipeline.save_lora_weights(folder, **layers, conditions=conditions, condition_info=info)
    return pipe


def differ(first, second) -> bool:
    return not torch.allclose(first, second, atol=1e-2)


def weights(pipe) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": t for name in BOTH for key, t in getattr(pipe, name).state_dict().items()}
