"""Lets `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` find MarDini's pipeline."""

try:
    from diffusers_mardini import MarDiniPipeline
except ImportError as error:
    raise ImportError(
        "this model needs the diffusers plugin of MarDini; install it with `pip install diffusers-mardini`"
    ) from error

__all__ = ["MarDiniPipeline"]
