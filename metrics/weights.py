"""Files of network weights that measure: read safely, told apart by their content."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from core.errors import UserError


def weights_sha256(path: Path) -> str:
    """Of the whole file, in hexadecimal; FileNotFoundError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {path} does not exist")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The file as a state dict, by the safe loader only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} is not a state dict that can be read safely; save `network.state_dict()` with torch.save "
            f"(a pickled network or a TorchScript archive is not accepted)"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds {type(state).__name__}, not a state dict of tensors by name")
    return state


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strict, but for counters that no forward pass reads and the auxiliary classifier of training."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith("AuxLogits.")}
    counters = {n: t for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
    network.load_state_dict(counters | state)
