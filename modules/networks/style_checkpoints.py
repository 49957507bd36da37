"""Weights of StyleGAN2 in the layouts of rosinality's `.pt` and NVIDIA's StyleGAN2-ADA / StyleGAN3 `.pkl` files.

All give a state dict with the parts `generator`, `generator_ema` and `discriminator`, as far as the file has them. Every
tensor of a file is accounted for: UserError names what is missing or unexpected.

    python -m modules.networks.style_checkpoints CHECKPOINT.ckpt WEIGHTS.pt [rosinality]

writes the networks of a training's checkpoint as a plain state dict, for `module.source_checkpoint`, or as rosinality's code
loads them.
"""

import hashlib
import io
import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError, report_user_errors
from core.files import atomic_write
from modules.ops.fir import TAPS
from modules.ops.weights import check_keys, read_hashed

ROSINALITY_PARTS = {"g": "generator", "g_ema": "generator_ema", "d": "discriminator"}
NVIDIA_PARTS = {"G": "generator", "G_ema": "generator_ema", "D": "discriminator"}
NETWORKS = ("generator", "generator_ema", "discriminator")
CONSTANT = ("kernel", "resample_filter")  # last name of buffers that are the same in every file


def read_style_checkpoint(path: str | Path) -> tuple[Mapping[str, Any], str]:
    """The weights in a file of any of the three layouts by the names of this project, and the file's SHA-256."""
    path = Path(path)
    if path.suffix.lower() == ".pkl":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        content = path.read_bytes()
        return from_nvidia(read_nvidia_pickle(content)), hashlib.sha256(content).hexdigest()
    checkpoint, digest = read_hashed(path)
    if isinstance(checkpoint, Mapping) and checkpoint.keys() & {"g", "g_ema"}:
        checkpoint = from_rosinality(checkpoint)
    return checkpoint, digest


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the tensors of a generator tell, by their names; UserError for another network."""
    layers = [key for i in range(len(state)) if (key := f"mapping_layers.{i}.weight") in state]
    convs = [key for i in range(len(state)) if (key := f"convs.{i}.bias") in state]
    if not layers or not convs:
        raise UserError("the file holds no complete generator of StyleGAN2")
    w_dim, z_dim = state[layers[0]].shape
    return {"image_size": [2 ** ((len(convs) + 3) // 2)] * 2, "z_dim": z_dim, "w_dim": w_dim, "mapping_layers": len(layers),
            "channels": [len(state[key]) for key in convs[::2]]}  # fmt: skip


def source_networks(
    checkpoint: Mapping[str, Any], expected_sizes: dict[str, Any], keys: set[str], method: str
) -> dict[str, Tensor]:
    """The tensors of the networks of a source with the names of this project: all of `keys` that are of a network in the
    source. A generator and its average stand in for one another; the discriminator may be missing. UserError for a network
    that is incomplete or has other sizes than `expected_sizes`, see `generator_sizes`."""
    state = checkpoint.get("state_dict", checkpoint)
    loaded = {key: value for key, value in state.items() if key.split(".")[0] in NETWORKS}
    present = {key.split(".")[0] for key in loaded}
    if not present & {"generator", "generator_ema"}:
        raise UserError("the file holds no generator of StyleGAN2")
    part = "generator_ema." if "generator_ema" in present else "generator."
    sizes = generator_sizes({key.removeprefix(part): value for key, value in loaded.items() if key.startswith(part)})
    differing = [f"module.{k} is {size}, the source's {sizes[k]}" for k, size in expected_sizes.items() if size != sizes[k]]
    if differing:
        raise UserError(f"the source is a network of another size: {'; '.join(differing)}")
    expected = {key for key in keys if key.split(".")[0] in present}
    check_keys(loaded.keys(), expected, method)
    for part, other in (("generator_ema.", "generator."), ("generator.", "generator_ema.")):
        if not any(key.startswith(part) for key in loaded):
            loaded |= {part + key.removeprefix(other): value for key, value in loaded.items() if key.startswith(other)}
    return loaded


# --- names ------------------------------------------------------------------------------------------------------------


def layer_names(part: str, layers: int, convs: int, layout: int) -> dict[str, str]:
    """Name in this project → name in layout 0, rosinality's, or 1, NVIDIA's: of a discriminator, or of a generator with so many
    mapping layers and convolutions."""
    sides = [2 ** (k + 2) for k in range((convs + 1) // 2)]
    names = {}

    def layer(name: str, rosinality: str, nvidia: str, bias: str | None = None) -> None:
        """`bias`: rosinality's name where it stands apart from the weight."""
        names[f"{name}.weight"] = f"{rosinality}.weight", f"{nvidia}.weight"
        names[f"{name}.bias"] = f"{bias or rosinality}.bias", f"{nvidia}.bias"

    if part == "discriminator":
        layer("from_rgb", "convs.0.0", f"b{sides[-1]}.fromrgb", bias="convs.0.1")
        for q, side in enumerate(sides[:0:-1]):
            layer(f"blocks.{q}.conv1", f"convs.{q + 1}.conv1.0", f"b{side}.conv0", bias=f"convs.{q + 1}.conv1.1")
            layer(f"blocks.{q}.conv2", f"convs.{q + 1}.conv2.1", f"b{side}.conv1", bias=f"convs.{q + 1}.conv2.2")
            names[f"blocks.{q}.skip.weight"] = f"convs.{q + 1}.skip.1.weight", f"b{side}.skip.weight"
        layer("conv", "final_conv.0", "b4.conv", bias="final_conv.1")
        layer("linear", "final_linear.0", "b4.fc")
        layer("output", "final_linear.1", "b4.out")
    else:
        names |= {"const": ("input.input", "synthesis.b4.const"), "w_mean": ("latent_avg", "mapping.w_avg")}
        for i in range(layers):
            layer(f"mapping_layers.{i}", f"style.{i + 1}", f"mapping.fc{i}")
        for i in range(convs):
            name, rosinality = f"convs.{i}", f"convs.{i - 1}" if i else "conv1"
            nvidia = f"synthesis.b{sides[(i + 1) // 2]}.conv{0 if i % 2 else 1}"
            names[f"{name}.conv.weight"] = f"{rosinality}.conv.weight", f"{nvidia}.weight"
            layer(f"{name}.conv.affine", f"{rosinality}.conv.modulation", f"{nvidia}.affine")
            names[f"{name}.bias"] = f"{rosinality}.activate.bias", f"{nvidia}.bias"
            names[f"{name}.noise_strength"] = f"{rosinality}.noise.weight", f"{nvidia}.noise_strength"
            names[f"{name}.noise_const"] = f"noises.noise_{i}", f"{nvidia}.noise_const"
        for i, side in enumerate(sides):
            name, rosinality, nvidia = f"to_rgb.{i}", f"to_rgbs.{i - 1}" if i else "to_rgb1", f"synthesis.b{side}.torgb"
            names[f"{name}.conv.weight"] = f"{rosinality}.conv.weight", f"{nvidia}.weight"
            layer(f"{name}.conv.affine", f"{rosinality}.conv.modulation", f"{nvidia}.affine")
            names[f"{name}.bias"] = f"{rosinality}.bias", f"{nvidia}.bias"
    return {name: file_names[layout] for name, file_names in names.items()}


def _shaped(name: str, value: Tensor) -> Tensor:
    """A tensor of another layout in the shape that it has here."""
    last = name.rsplit(".", 1)[-1]
    if last == "const":
        return value.reshape(1, *value.shape[-3:])
    if last == "noise_const":
        return value.reshape(1, 1, *value.shape[-2:])
    if last in ("bias", "noise_strength", "w_mean"):
        return value.flatten()
    return value.squeeze(0) if value.dim() == 5 else value


def _renamed(part: str, state: Mapping[str, Tensor], names: Mapping[str, str], optional: Mapping[str, Tensor]) -> dict:
    """The tensors of a part by this project's names; those that may be missing are taken from `optional`, by the same names."""
    missing = [file_name for name, file_name in names.items() if file_name not in state and name not in optional]
    unexpected = [k for k in state if k not in names.values() and k.rsplit(".", 1)[-1] not in CONSTANT]
    if missing or unexpected:
        lists = [
            f"{kind} {', '.join(keys[:6])}{' …' * (len(keys) > 6)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UserError(f"{part}: {'; '.join(lists)}")
    values = {name: state[file_name] if file_name in state else optional[name] for name, file_name in names.items()}
    return {f"{part}.{name}": _shaped(name, value).contiguous().float() for name, value in values.items()}


# --- rosinality -------------------------------------------------------------------------------------------------------


def from_rosinality(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The networks `g`, `g_ema`, `d` of a checkpoint, each also with the prefix `module.` of data parallelism."""
    result: dict[str, Tensor] = {}
    for file_part, part in ROSINALITY_PARTS.items():
        if file_part not in checkpoint:
            continue
        state = {key.removeprefix("module."): value for key, value in checkpoint[file_part].items()}
        optional: dict[str, Tensor] = {}
        if part == "discriminator":
            layers, convs = 0, 2 * sum(key.endswith(".skip.1.weight") for key in state) + 1
        else:
            layers = sum(key.startswith("style.") and key.endswith(".weight") for key in state)
            convs = sum(key.endswith("activate.bias") for key in state)
            if not layers or not convs:
                raise UserError(f"{file_part} is no generator of StyleGAN2")
            state["latent_avg"] = checkpoint.get("latent_avg", torch.zeros(state["style.1.weight"].shape[0]))
            generator = torch.Generator().manual_seed(0)
            for i in range(convs):  # old files have no constant noise
                side = 2 ** ((i + 1) // 2 + 2)
                optional[f"convs.{i}.noise_const"] = torch.randn(1, 1, side, side, generator=generator)
        result |= _renamed(part, state, layer_names(part, layers, convs, 0), optional)
    return result


def to_rosinality(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint with the networks of a state dict, complete for rosinality's strict loading."""
    checkpoint: dict[str, Any] = {}
    kernel = torch.outer(torch.tensor(TAPS), torch.tensor(TAPS)) / 64
    for file_part, part in ROSINALITY_PARTS.items():
        tensors = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        if not tensors:
            continue
        layers = sum(key.startswith("mapping_layers.") and key.endswith(".weight") for key in tensors)
        convs = sum(key.endswith(".noise_strength") for key in tensors)
        if part == "discriminator":
            convs = 2 * sum(key.endswith(".skip.weight") for key in tensors) + 1
        names = layer_names(part, layers, convs, 0)
        if names.keys() != tensors.keys():
            raise UserError(f"{part}: {', '.join(sorted(names.keys() ^ tensors.keys())[:6])} cannot be exported")
        renamed = {}
        for name, value in tensors.items():
            if value.dim() == 4 and name.startswith(("convs.", "to_rgb.")) and name.endswith(".weight"):
                value = value[None]
            elif name.startswith("to_rgb.") and name.count(".") == 2:  # its bias
                value = value.view(1, -1, 1, 1)
            renamed[names[name]] = value.clone()
        for i in range((convs - 1) // 2):
            if part == "discriminator":
                renamed |= {f"convs.{i + 1}.{layer}.0.kernel": kernel.clone() for layer in ("conv2", "skip")}
            else:
                renamed |= {f"convs.{2 * i}.conv.blur.kernel": 4 * kernel, f"to_rgbs.{i}.upsample.kernel": 4 * kernel}
        if part != "discriminator":
            checkpoint["latent_avg"] = renamed.pop("latent_avg")
        checkpoint[file_part] = renamed
    return checkpoint


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


class _Record:
    """Stands for an object of a class that is not imported: its attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Dict(dict):
    """Stands for a class derived from dict."""


def _persistent(meta: Mapping[str, Any]) -> _Record:
    """In place of the function that would execute the source code in the pickle."""
    record = _Record()
    record.__setstate__(meta["state"])
    return record


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


ALLOWED = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "float32"): torch.float32,
    ("torch", "float16"): torch.float16,
}


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors, containers and attributes only; the source code that NVIDIA's pickles carry stays a string."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.startswith("torch.nn.modules."):
            return _Record
        if module.startswith("dnnlib.tflib"):
            raise UserError("a pickle of TensorFlow; convert it to PyTorch with NVIDIA's legacy.py first")
        raise UserError(
            f"refused, loading it would run code ({module}.{name}); a checkpoint holds tensors and plain values only"
        )


def read_nvidia_pickle(content: bytes) -> Mapping[str, Any]:
    """The content of a `.pkl` file without running any code; UserError for one that needs more than tensors."""
    try:
        result = _Unpickler(io.BytesIO(content)).load()
    except UserError:
        raise
    except Exception:  # unpickling raises nearly anything for files that are something else
        raise UserError("not a checkpoint, or a damaged one") from None
    if not isinstance(result, Mapping) or not result.keys() & {"G", "G_ema"}:
        raise UserError("the pickle holds no G or G_ema")
    return result


def _flat(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module's record by dotted names."""
    values = vars(module) if isinstance(module, _Record | nn.Module) else {}
    tensors = {**values.get("_parameters", {}), **values.get("_buffers", {})}
    state = {prefix + name: value.detach() for name, value in tensors.items() if value is not None}
    for name, child in values.get("_modules", {}).items():
        state |= _flat(child, f"{prefix}{name}.")
    return state


def from_nvidia(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The networks `G`, `G_ema`, `D` of a pickle that `read_nvidia_pickle` has read."""
    result: dict[str, Tensor] = {}
    for file_part, part in NVIDIA_PARTS.items():
        if checkpoint.get(file_part) is None:
            continue
        state = _flat(checkpoint[file_part])
        if part != "discriminator" and not {"synthesis.b4.const", "mapping.fc0.weight"} <= state.keys():
            raise UserError(f"{file_part} is no generator of StyleGAN2; StyleGAN3's own networks are not supported")
        layers = sum(key.startswith("mapping.fc") and key.endswith(".weight") for key in state)
        sides = {int(key.split(".")[-3][1:]) for key in state if key.endswith(("conv1.weight", "b4.conv.weight"))}
        result |= _renamed(part, state, layer_names(part, layers, 2 * int(math.log2(max(sides, default=4))) - 3, 1), {})
    return result


def export(path: str, target: str, layout: str = "") -> None:
    """Writes the networks of a checkpoint; UserError where more than these makes its samples."""
    state = read_hashed(path)[0].get("state_dict", {})
    networks = {key: value for key, value in state.items() if key.split(".")[0] in ROSINALITY_PARTS.values()}
    if not networks or any(key.startswith("miner.") for key in state):
        raise UserError(f"{path} holds no plain StyleGAN2")
    converted = to_rosinality(networks)  # which checks the names
    with atomic_write(target) as file:
        torch.save(converted if layout == "rosinality" else networks, file)


def main(arguments: list[str]) -> int:
    with report_user_errors() as errors:
        if len(arguments) < 2 or arguments[2:] not in ([], ["rosinality"]):
            raise UserError("expected CHECKPOINT.ckpt WEIGHTS.pt [rosinality]")
        export(*arguments)
    return errors.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
