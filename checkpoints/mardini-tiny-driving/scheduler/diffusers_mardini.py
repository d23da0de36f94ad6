"""Lets diffusers find the class of this part in the plugin; see pipeline_mardini.py."""

try:
    import diffusers_mardini.components as components
except ImportError as error:
    raise ImportError(
        "this model needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout of diffusers-mardini"
    ) from error

globals().update({name: getattr(components, name) for name in components.__all__})
