"""Adapters in any order: the models' weights are the original ones and those of what is reported active."""

import random

import pytest
import torch

from pipelines_tests.loaders.adapters import BOTH
from pipelines_tests.tiny_pipeline import tiny_pipeline


LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_v")
PARTS = {"a": BOTH, "b": ("transformer",)}


def adapter(name: str) -> dict[str, torch.Tensor]:
    """`a` changes two layers of both models, `b` one of the transformer."""
    generator, tensors = torch.Generator().manual_seed(ord(name)), {}
    for part in PARTS[name]:
        for layer in LAYERS[: len(PARTS[name])]:
            tensors[f"{part}.{layer}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
            tensors[f"{part}.{layer}.lora_B.weight"] = torch.randn(32, 2, generator=generator)
    return tensors


ADAPTERS = {name: adapter(name) for name in PARTS}


class Expected:
    """The same operations in plain words: which weights there must be."""

    def __init__(self):
        self.loaded, self.active, self.scales = [], [], {}
        self.disabled, self.fused, self.kept = False, None, {}

    def apply(self, operation: str) -> bool:
        """Carry out an operation; return whether it is allowed."""
        verb, _, name = operation.partition(" ")
        if self.fused and verb not in ("unfuse", "unload", "enable"):
            return False
        return getattr(self, f"_{verb}")(name)

    def _load(self, name):
        if name in self.loaded:
            return False
        self.loaded.append(name)
        self.active, self.scales[name], self.disabled = [name], 1.0, False
        return True

    def _set(self, name):
        if name not in self.loaded:
            return False
        self.active, self.scales[name] = [name], 0.3
        return True

    def _fuse(self, scale):
        if not self.active or self.disabled:
            return False
        self.fused = {name: self.scales[name] * float(scale or 1) for name in self.active}
        return True

    def _unfuse(self, _):
        was, self.fused = bool(self.fused), None
        return was

    def _delete(self, name):
        if name not in self.loaded:
            return False
        self.loaded.remove(name)
        self.active = [other for other in self.active if other != name] or sorted(self.loaded)[:1]
        self.disabled &= bool(self.loaded)
        return True

    def _disable(self, _):
        self.disabled = bool(self.loaded)
        return True

    def _enable(self, _):
        self.disabled = False
        return True

    def _unload(self, _):
        for name, scale in (self.fused or {}).items():
            self.kept[name] = self.kept.get(name, 0) + scale
        self.loaded, self.active, self.disabled, self.fused = [], [], False, None
        return True

    def running(self) -> dict[str, float]:
        return self.fused or {name: self.scales[name] for name in self.active if not self.disabled}


OPERATIONS = {
    "load a": lambda pipe: pipe.load_lora_weights(ADAPTERS["a"], "a"),
    "load b": lambda pipe: pipe.load_lora_weights(ADAPTERS["b"], "b"),
    "set a": lambda pipe: pipe.set_adapters("a", 0.3),
    "set b": lambda pipe: pipe.set_adapters("b", 0.3),
    "fuse": lambda pipe: pipe.fuse_lora(),
    "fuse 0.5": lambda pipe: pipe.fuse_lora(lora_scale=0.5, safe_fusing=True),
    "unfuse": lambda pipe: pipe.unfuse_lora(),
    "delete a": lambda pipe: pipe.delete_adapters("a"),
    "delete b": lambda pipe: pipe.delete_adapters("b"),
    "disable": lambda pipe: pipe.disable_lora(),
    "enable": lambda pipe: pipe.enable_lora(),
    "unload": lambda pipe: pipe.unload_lora_weights(),
}


def layers_of(pipe) -> dict[str, torch.nn.Module]:
    return {f"{part}.{layer}": getattr(pipe, part).get_submodule(layer) for part in BOTH for layer in LAYERS}


def change(name: str, layer: str) -> torch.Tensor:
    tensors = ADAPTERS[name]
    if f"{layer}.lora_A.weight" not in tensors:
        return torch.zeros(())
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


def check(pipe, expected: Expected, original: dict[str, torch.Tensor], told: str):
    assert pipe.get_active_adapters() == list(expected.running()), told
    assert pipe.fused_loras == set(expected.fused or ()) and pipe.num_fused_loras == len(pipe.fused_loras), told
    loaded = {part: [name for name in expected.loaded if part in PARTS[name]] for part in BOTH}
    assert pipe.get_list_adapters() == {part: names for part, names in loaded.items() if names}, told
    for name, layer in layers_of(pipe).items():
        base = original[name] + sum(scale * change(adapter, name) for adapter, scale in expected.kept.items())
        inside = base + sum(scale * change(adapter, name) for adapter, scale in (expected.fused or {}).items())
        running = base + sum(scale * change(adapter, name) for adapter, scale in expected.running().items())
        torch.testing.assert_close(layer.weight.detach(), inside, atol=2e-5, rtol=0, msg=f"{told}: weights of {name}")
        with torch.no_grad():
            effect = (layer(torch.eye(32)) - layer(torch.zeros(32))).T
        torch.testing.assert_close(effect, running, atol=2e-5, rtol=0, msg=f"{told}: effect of {name}")


def run_sequence(pipe, operations: tuple[str, ...], original: dict[str, torch.Tensor]):
    expected = Expected()
    for number, operation in enumerate(operations):
        told = f"{' -> '.join(operations[: number + 1])}"
        if expected.apply(operation):
            try:
                OPERATIONS[operation](pipe)
            except ValueError as error:
                raise AssertionError(told) from error
        else:
            with pytest.raises(ValueError):
                OPERATIONS[operation](pipe)
                pytest.fail(f"{told} is not refused")
        check(pipe, expected, original, told)
    pipe.unload_lora_weights()
    for name, layer in layers_of(pipe).items():
        assert type(layer) is torch.nn.Linear
        if not expected.kept and not expected.fused and not any(o.startswith("fuse") for o in operations):
            assert torch.equal(layer.weight, original[name]), operations
        layer.weight.data.copy_(original[name])


@pytest.mark.parametrize("seed", range(6))
def test_in_any_order_what_is_reported_is_what_runs_and_weights_stay_whole(seed):
    pipe, choose = tiny_pipeline(), random.Random(seed)
    original = {name: layer.weight.detach().clone() for name, layer in layers_of(pipe).items()}
    for _ in range(5):
        run_sequence(pipe, ("load a", *choose.choices(list(OPERATIONS), k=5)), original)
