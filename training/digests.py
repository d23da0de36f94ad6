"""Identify models by the contents of their weights and settings, wherever they were loaded from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def tensors_digest(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named tensors and settings; settings whose name begins with `_` do not count."""
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
