"""Load LoRA adapters and weights in one file; list the layers that quantization should leave alone."""

from .lora import MarDiniLoraLoaderMixin
from .lora_files import LoraDescription
from .quantization import layers_to_keep
from .single_file import allow_single_files


__all__ = ["LoraDescription", "MarDiniLoraLoaderMixin", "allow_single_files", "layers_to_keep"]
