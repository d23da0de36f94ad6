"""Our two models as diffusers' model tests want them: a class, its arguments and inputs, all small and the same each time."""

import functools

import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from pipelines_tests.upstream.checkout import require_checkout


require_checkout()

from tests.models.testing_utils import BaseModelTesterConfig  # noqa: E402
from tests.testing_utils import torch_device  # noqa: E402


SIZE = {"in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 32}


def with_random_weights(model_class):
    """The same model, but a new one has random weights everywhere: ours gate all blocks away, and would hide everything."""

    class Random(model_class):
        @functools.wraps(model_class.__init__)
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                if not parameter.is_meta:
                    parameter.data.normal_(std=0.2, generator=generator)

    Random.__name__ = model_class.__name__
    return Random


class TransformerConfig(BaseModelTesterConfig):
    model_class = with_random_weights(MarDiniTransformer3DModel)
    output_shape = (5, 4, 4, 4)
    main_input_name = "hidden_states"

    def get_init_dict(self):
        return {**SIZE, "patch_size": 1, "planning_dim": 16}

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(1)
        mask = torch.tensor([[True, False, False, False, True]])
        return {
            "hidden_states": torch.randn(1, 5, 4, 4, 4, generator=generator, dtype=self.torch_dtype).to(torch_device),
            "timestep": torch.tensor([500], device=torch_device),
            "planning_signals": torch.randn(1, 5, 2, 2, 16, generator=generator, dtype=self.torch_dtype).to(
                torch_device
            ),
            "reference_mask": mask.to(torch_device),
        }


class PlannerConfig(BaseModelTesterConfig):
    model_class = with_random_weights(MarDiniPlannerTransformer3DModel)
    output_shape = (5, 4, 4, 16)
    main_input_name = "hidden_states"

    def get_init_dict(self):
        return SIZE

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(1)
        mask = torch.tensor([[True, False, False, False, True]])
        return {
            "hidden_states": torch.randn(1, 5, 4, 4, 4, generator=generator, dtype=self.torch_dtype).to(torch_device),
            "reference_mask": mask.to(torch_device),
        }
