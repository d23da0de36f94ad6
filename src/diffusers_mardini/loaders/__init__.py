"""Adapters, and weights in one file."""

from .lora import MarDiniLoraLoaderMixin
from .lora_files import LoraDescription
from .single_file import allow_single_files


__all__ = ["LoraDescription", "MarDiniLoraLoaderMixin", "allow_single_files"]
