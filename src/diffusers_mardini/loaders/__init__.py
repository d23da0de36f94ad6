"""Adapters: loading, mixing and saving LoRA."""

from .lora import MarDiniLoraLoaderMixin
from .lora_files import LoraDescription


__all__ = ["LoraDescription", "MarDiniLoraLoaderMixin"]
