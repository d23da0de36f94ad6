"""Record the matrix products of some work and run them again alone: their time is a lower limit for any faster form.

Attention is recorded as its two products, so the limit does not include the savings of a fused kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode


_PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}  # position of the left factor among the arguments
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


@dataclass(frozen=True)
class Product:
    """Shapes and number format of one product."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    dtype: torch.dtype

    @property
    def operations(self) -> int:
        """Return the number of multiplications and additions."""
        rows = torch.Size(self.left[:-1]).numel()
        return 2 * rows * self.left[-1] * self.right[-1]


class ProductRecorder(TorchDispatchMode):
    """Record every matrix product inside the `with` block, in order, in `products`."""

    def __init__(self):
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _PRODUCTS:
            left, right = args[_PRODUCTS[function] : _PRODUCTS[function] + 2]
            self._note(left.shape, right.shape, left.dtype)
        elif function in _ATTENTION:
            query, key, value = args[:3]  # (batch, heads, tokens, head_dim)
            scores = (*query.shape[:-1], key.shape[-2])
            self._note(query.shape, (*key.shape[:-2], key.shape[-1], key.shape[-2]), query.dtype)
            self._note(scores, value.shape, query.dtype)
        return function(*args, **(kwargs or {}))

    def _note(self, left, right, dtype: torch.dtype) -> None:
        self.products.append(Product(tuple(left), tuple(right), dtype))


def record_products(work: Callable[[], object]) -> list[Product]:
    """Run `work` once and return its products."""
    recorder = ProductRecorder()
    with recorder:
        work()
    return recorder.products


def products_alone(products: list[Product], device: torch.device | str) -> Callable[[], None]:
    """Return a function that runs the same products on random matrices."""
    pairs = [
        tuple(torch.randn(shape, device=device).to(product.dtype) for shape in (product.left, product.right))
        for product in products
    ]

    @torch.no_grad()
    def run() -> None:
        for left, right in pairs:
            torch.matmul(left, right)

    return run
