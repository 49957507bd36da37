"""Memory that the rebuilding of a network may take: a file's settings are a stranger's, its tensors are there already."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
OVERHEAD = 1024  # bytes, about what a tensor and its layer take in Python


class Allowance(TorchFunctionMode):
    """Inside, new tensors may have as many elements as `state` has bytes, and be about twice as many.

    RuntimeError before more is taken. What is created, and the random state, are as without it.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in state.values())}
        self.room = sum(storages.values()) + 2 * OVERHEAD * (len(state) + 1)

    def __torch_function__(
        self, function: Any, types: Sequence[type], arguments: tuple = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        if function in FACTORIES:
            self.room -= function(*arguments, **keywords | {"device": "meta"}).numel() + OVERHEAD
            if self.room < 0:
                raise RuntimeError("its settings ask for a larger network than its weights are from")
        return function(*arguments, **keywords)
