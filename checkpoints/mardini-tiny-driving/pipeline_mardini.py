"""Lets `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` find MarDini's pipeline."""

FORMAT_VERSION = 1  # of the folder that this file lies in

try:
    import diffusers_mardini as plugin
except ImportError as error:
    raise ImportError(
        "this model needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout of diffusers-mardini"
    ) from error

if getattr(plugin, "FORMAT_VERSION", 0) < FORMAT_VERSION:
    raise ImportError(
        f"this model was saved in format {FORMAT_VERSION}, which the installed diffusers-mardini "
        f"{plugin.__version__} does not know; update it with `git pull` and `pip install .` in its checkout"
    )

MarDiniPipeline = plugin.MarDiniPipeline
