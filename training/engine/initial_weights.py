"""Draw the initial weights of models that were built on the meta device, one tensor at a time.

The values are those that the same constructors draw on the CPU, bit for bit: what the constructors do to each tensor
is recorded while they run on the meta device, and done again in the same order, wherever the models have been moved
or cut since. So a process needs memory for its shards and for one whole tensor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from training.engine.sharding import fill


_OVERWRITING = {"uniform_", "normal_", "zero_", "fill_"}  # they leave nothing of the values before


@dataclass(frozen=True)
class _Value:
    """Stands for a tensor in the recorded arguments; `key` is that of its memory."""

    key: int


@dataclass(frozen=True)
class _Call:
    """A call of a constructor.

    Attributes:
        function, arguments, keywords: with `_Value` in place of tensors.
        result: the tensor on the meta device that it made or changed.
        changes: whether that tensor was there before.
    """

    function: Any
    arguments: tuple
    keywords: dict[str, Any]
    result: torch.Tensor
    changes: bool

    @property
    def overwrites(self) -> bool:
        """Whether nothing is left of the values that the result had before."""
        return not self.changes or self.function.overloadpacket.__name__ in _OVERWRITING

    @property
    def draws(self) -> bool:
        """Whether it takes numbers from the generator."""
        return torch.Tag.nondeterministic_seeded in self.function.tags

    def reads(self) -> set[int]:
        """Return the keys of the values that it depends on."""
        given = tree_leaves((self.arguments, self.keywords))
        keys = {value.key for value in given if isinstance(value, _Value)}
        return keys - {_key(self.result)} if self.overwrites else keys

    def do(self, values: dict[int, torch.Tensor]) -> torch.Tensor:
        """Do it on the CPU with the values by their keys."""
        if self.changes and self.overwrites:
            own = torch.empty(self.result.shape, dtype=self.result.dtype)
            values = {**values, _key(self.result): own}
        arguments, keywords = tree_map_only(
            _Value, lambda value: values[value.key], (self.arguments, self.keywords), is_leaf=_is_value
        )
        return self.function(*arguments, **keywords | ({"device": "cpu"} if "device" in keywords else {}))


class InitialWeights(TorchDispatchMode):
    """Record within the block what constructors do on the meta device; `draw` does it on models in memory."""

    def __init__(self):
        super().__init__()
        self._calls: list[_Call] = []
        self._names: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do the call, and record it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        assert torch.is_tensor(result) and result.is_meta, f"{func} is no way to make initial weights"
        given = [_key(value) for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        recorded = tree_map_only(torch.Tensor, lambda tensor: _Value(_key(tensor)), (args, kwargs))
        self._calls.append(_Call(func, *recorded, result, _key(result) in given))
        return result

    def name(self, models: torch.nn.Module) -> None:
        """Remember which tensor is which parameter, before the models are moved or cut."""
        self._names = {_key(parameter): name for name, parameter in models.named_parameters()}

    def draw(self, models: torch.nn.Module) -> None:
        """Draw the weights from torch's own generator into the models of `name`, which have memory now.

        What is overwritten later is drawn, too, and dropped: the generator must give the same numbers as before.
        """
        parameters = dict(models.named_parameters())
        needed, last_use = self._needed()
        values: dict[int, torch.Tensor] = {}
        for number, call in enumerate(self._calls):
            if number not in needed:
                if call.draws:
                    call.do(values)
                continue
            values[_key(call.result)] = call.do(values)
            for key in {*call.reads(), _key(call.result)}:
                if last_use[key] == number:
                    if key in self._names:
                        fill(parameters[self._names[key]], values[key])
                    del values[key]  # before the next one is drawn

    def _needed(self) -> tuple[set[int], dict[int, int]]:
        """Return the numbers of the calls that parameters depend on, and of the last use of each of their values."""
        needed, last_use, alive = set(), {}, set(self._names)
        for number, call in reversed(list(enumerate(self._calls))):
            key = _key(call.result)
            if key not in alive:
                continue
            needed.add(number)
            alive = (alive - {key} if call.overwrites else alive) | call.reads()
            for used in {key, *call.reads()}:
                last_use.setdefault(used, number)
        return needed, last_use


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_value(value: Any) -> bool:
    return isinstance(value, _Value)
