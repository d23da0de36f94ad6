"""Lets diffusers find the class of this part in the plugin; see pipeline_mardini.py."""

from diffusers_mardini.components import *  # noqa: F403
