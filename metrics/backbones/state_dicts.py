"""State dicts of networks from local weight files."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from core.errors import UserError
from modules.ops.weights import read_hashed


def read_state_dict(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The state dict in a file, read by the safe loader, and the file's SHA-256; FileNotFoundError or UserError."""
    state, sha256 = read_hashed(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors by name, got {type(state).__name__}")
    return state, sha256


def load_state_dict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strict, except for counters that no forward pass reads and the auxiliary classifier of training."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith("AuxLogits.")}
    counters = {n: t for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
    network.load_state_dict(counters | state)
