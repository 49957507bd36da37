"""Files with an autoencoder of VQGAN: of this project, and of taming-transformers and latent-diffusion in the same form.

Public files are pickles of old versions of Lightning with objects of many classes. None of them is imported: `read_pickled`
rebuilds tensors and containers and puts empty objects in place of what comes from known libraries; anything else is refused.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError
from modules.networks.vqgan_autoencoder import Decoder, Encoder
from modules.ops.weights import file_sha256, read_hashed

CLASS_PATH = "modules.vqgan.VQGAN"
PARTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
PREFIX = "first_stage_model."  # of the autoencoder in a file of a second stage, which holds other models, too
STATISTICS = {"quantize.usage", "quantize.sums"}  # of the code book, for training only
IGNORED = ("loss", "model_ema")  # what else belongs to an autoencoder in training
RESOLUTION = 256  # of all public files; weights do not show it
# Libraries whose objects a checkpoint may mention; they become empty objects.
MENTIONED = (
    "pytorch_lightning", "lightning", "omegaconf", "numpy", "taming", "ldm", "torch", "argparse", "typing", "pathlib",
    "collections", "copyreg", "_codecs",
)  # fmt: skip
PLAIN = ("object", "set", "frozenset", "bytearray", "complex", "slice", "range")
DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64, "LongStorage": torch.int64,
    "IntStorage": torch.int32, "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16, "CharStorage": torch.int8,
}  # fmt: skip


class NotVQGAN(UserError):
    """The file holds something else."""


# --- reading ----------------------------------------------------------------------------------------------------------


class _Empty(dict):
    """In place of an object of another library: takes whatever the pickle would give it, and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _StoredTensor(NamedTuple):
    """A tensor that is still in the file."""

    storage: tuple[str, torch.dtype]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> _StoredTensor:
    return _StoredTensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: _StoredTensor, *_: Any) -> _StoredTensor:
    return data


ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] in MENTIONED or (module == "builtins" and name in PLAIN):
            return _Empty
        advice = "a checkpoint holds tensors and plain values only"
        raise UserError(f"refused, loading it would run code ({module}.{name}); {advice}")

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError
        return str(key), dtype


def read_pickled(path: Path) -> tuple[Mapping[str, Any], zipfile.ZipFile, str]:
    """The content of a zip file of `torch.save` with tensors as references, the open file, and the folder in it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise NotVQGAN(f"{path}: not a checkpoint, or one of torch before 1.6; save it again with a newer torch")
    try:
        archive = zipfile.ZipFile(path)
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            return _Unpickler(file).load(), archive, name.removesuffix("data.pkl")
    except UserError as error:
        raise NotVQGAN(f"{path}: {error}") from None
    except Exception:  # unpickling raises nearly anything for files that are something else
        raise NotVQGAN(f"{path}: not a checkpoint, or a damaged one") from None


def _materialized(tensors: Mapping[str, _StoredTensor], archive: zipfile.ZipFile, folder: str, path: str) -> dict[str, Tensor]:
    """The tensors themselves in float32; nothing else is read. UserError if the file is damaged."""
    result = {}
    try:
        for name, (storage, offset, size, stride) in tensors.items():
            key, dtype = storage
            member = archive.getinfo(f"{folder}data/{key}")
            if member.compress_type != zipfile.ZIP_STORED:  # torch writes no packed members, which could be of any size
                raise zipfile.BadZipFile
            values = torch.frombuffer(bytearray(archive.read(member)), dtype=dtype)
            if math.prod(size) > len(values):
                raise ValueError
            result[name] = values.as_strided(size, stride, offset).to(torch.float32, copy=True).contiguous()
    except (zipfile.BadZipFile, RuntimeError, KeyError, ValueError, AttributeError, TypeError):
        raise UserError(f"{path}: damaged, its tensors cannot be read") from None
    return result


# --- meaning ----------------------------------------------------------------------------------------------------------


def read_autoencoder(path: str) -> tuple[dict[str, Any], str]:
    """A checkpoint of VQGAN, and the SHA-256 of its file: one of this project, or made from the autoencoder in a public file of
    the first stage, of the transformer, or of latent-diffusion's VQModel.

    Every tensor of a public file is accounted for: UserError lists what is missing and what is unexpected.
    """
    content, archive, folder = read_pickled(Path(path))
    with archive:
        if isinstance(content, Mapping) and "class_path" in content:
            content, sha256 = read_hashed(path)
            if content["class_path"] != CLASS_PATH:
                raise UserError(f"{path}: holds {content['class_path']}, expected {CLASS_PATH}")
            return content, sha256
        state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        tensors = {key: value for key, value in state.items() if isinstance(value, _StoredTensor)}
        second = any(key.startswith(PREFIX) for key in tensors)
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX) or not second}
        tensors, averaged = _with_averages(tensors)
        loaded = {key: value for key, value in tensors.items() if key.split(".")[0] in PARTS}
        shapes = {key: value.size for key, value in loaded.items()}
        settings = infer_settings(shapes, path)
        unexpected = [key for key in tensors if key.split(".")[0] not in (*PARTS, *IGNORED)]
        check_keys(shapes, expected_shapes(settings), path, unexpected)
        weights = _materialized(loaded, archive, folder, path)
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    f, (k, dim) = settings["unshuffle"] * 2 ** (len(settings["ch_mult"]) - 1), (settings["num_codes"], settings["embed_dim"])
    kind = "the autoencoder in a second stage's file" if second else "an autoencoder"
    description = (
        f"{kind} of VQGAN in the format of taming-transformers: downsampling {f}, {k} codes of {dim} numbers, "
        f"{num_parameters:,} parameters" + ", averaged weights" * averaged
    )
    facts = {"description": description, "iteration": 0}
    return {"class_path": CLASS_PATH, "hyper_parameters": settings, "state_dict": weights, **facts}, file_sha256(path)


def fitting_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The autoencoder's weights in the state dict of a file, with statistics of the code book where the network has them.

    UserError if they do not fit a network with the state dict `target`, for images of `side` pixels.
    """
    loaded, expected = (autoencoder_part(state) for state in (source, target))
    shapes = [{key: tuple(value.shape) for key, value in part.items()} for part in (loaded, expected)]
    given, wanted = (infer_settings(part, "the file", side) for part in shapes)
    unequal = [f"module.{key} is {wanted[key]}, the source's {given[key]}" for key in wanted if wanted[key] != given[key]]
    if unequal:
        raise UserError(f"the source is a network of another size: {'; '.join(unequal)}")
    check_keys(*shapes, "the file")
    entries = loaded["quantize.embedding.weight"]
    defaults = {"quantize.usage": torch.ones(len(entries)), "quantize.sums": entries}
    return loaded | {key: source.get(key, defaults[key]) for key in STATISTICS & target.keys()}


def autoencoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the state dict of a VQGAN that encoding and decoding need."""
    return {key: value for key, value in state.items() if key.split(".")[0] in PARTS and key not in STATISTICS}


def read_transformer(path: str) -> dict[str, Tensor]:
    """The weights of the transformer in a public file, or in one of this project; masks are left out."""
    content, archive, folder = read_pickled(Path(path))
    with archive:
        state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        loaded = {key.removeprefix("transformer."): value for key, value in state.items() if key.startswith("transformer.")}
        loaded = {key: value for key, value in loaded.items() if not key.endswith(".attn.mask")}
        if not loaded:
            raise NotVQGAN(f"{path}: holds no transformer")
        return _materialized(loaded, archive, folder, path)


def _with_averages(state: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The state with the average of each weight in its place, where latent-diffusion stored one: `model_ema.<name without
    dots>`."""
    averages = {key.removeprefix("model_ema."): value for key, value in state.items() if key.startswith("model_ema.")}
    result = {key: averages.get(key.replace(".", ""), value) for key, value in state.items()}
    return result, any(key.replace(".", "") in averages for key in state)


def infer_settings(shapes: Mapping[str, tuple[int, ...]], path: str, side: int = RESOLUTION) -> dict[str, Any]:
    """Settings of `modules.vqgan.VQGAN` for images of `side` pixels from the shapes of an autoencoder's weights."""

    def count(pattern: str) -> int:
        return next(i for i in range(len(shapes) + 1) if not any(key.startswith(pattern.format(i)) for key in shapes))

    try:
        levels = count("encoder.down.{}.")
        ch = shapes["encoder.conv_in.weight"][0]
        widths = [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)]
        attention = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes]
        codes, dim = shapes["quantize.embedding.weight"]
        z_channels = shapes["decoder.conv_in.weight"][1]
        unshuffle = round((shapes["encoder.conv_in.weight"][1] / 3) ** 0.5)
    except (KeyError, IndexError, ValueError, StopIteration):
        raise NotVQGAN(f"{path}: holds no autoencoder of VQGAN") from None
    return {
        "image_size": [side, side], "ch": ch, "ch_mult": [width // ch for width in widths],
        "num_res_blocks": count("encoder.down.0.block.{}."), "unshuffle": unshuffle,
        "attn_resolutions": [side // unshuffle // 2**i for i in attention],
        "z_channels": z_channels, "embed_dim": dim, "num_codes": codes,
    }  # fmt: skip


def expected_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of the autoencoder with these settings."""
    names = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels")
    dim, z, codes = settings["embed_dim"], settings["z_channels"], settings["num_codes"]
    with torch.device("meta"):
        parts = torch.nn.ModuleDict(
            {
                name: kind(settings["image_size"][0], *(settings[key] for key in names), unshuffle=settings["unshuffle"])
                for name, kind in (("encoder", Encoder), ("decoder", Decoder))
            }
        )
    shapes = {key: tuple(value.shape) for key, value in parts.state_dict().items()}
    convs = {"quant_conv": (dim, z), "post_quant_conv": (z, dim)}
    shapes |= {f"{name}.weight": (*size, 1, 1) for name, size in convs.items()}
    shapes |= {f"{name}.bias": size[:1] for name, size in convs.items()}
    return shapes | {"quantize.embedding.weight": (codes, dim)}


def check_keys(
    loaded: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: str, unexpected: Iterable[str] = ()
) -> None:
    """UserError that lists which weights are missing, `unexpected` or of another shape, from the shapes by name."""
    lists = {
        "missing": sorted(expected.keys() - loaded.keys()),
        "unexpected": sorted([*(loaded.keys() - expected.keys()), *unexpected]),
        "of another shape": sorted(key for key in loaded.keys() & expected.keys() if loaded[key] != expected[key]),
    }
    lines = [f"{kind}: {', '.join(keys[:8])}{' …' * (len(keys) > 8)}" for kind, keys in lists.items() if keys]
    if lines:
        raise UserError(f"{path} does not fit the network; {'; '.join(lines)}")
