"""MarDini (arXiv 2410.20280) as a plugin of diffusers."""

__version__ = "0.1.0.dev0"
