"""Files of other projects, made from networks of ours by tables that are written out here a second time."""

import io
import os
import pickle
import sys
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn

import train
from cli.loader import load_config
from core.errors import UserError
from modules.networks.style_checkpoints import (
    from_nvidia,
    from_rosinality,
    main,
    read_nvidia_pickle,
    read_style_checkpoint,
    to_rosinality,
)
from tests.modules.style_source import TINY, networks, source_model

ROSINALITY = {  # of a 16-pixel model: some of each kind, as the public code names them
    "style.1.weight": "mapping_layers.0.weight",
    "style.2.bias": "mapping_layers.1.bias",
    "input.input": "const",
    "conv1.conv.weight": "convs.0.conv.weight",
    "conv1.noise.weight": "convs.0.noise_strength",
    "convs.0.conv.weight": "convs.1.conv.weight",
    "convs.3.conv.modulation.weight": "convs.4.conv.affine.weight",
    "convs.3.activate.bias": "convs.4.bias",
    "to_rgb1.conv.weight": "to_rgb.0.conv.weight",
    "to_rgbs.1.conv.modulation.bias": "to_rgb.2.conv.affine.bias",
    "to_rgbs.1.bias": "to_rgb.2.bias",
    "noises.noise_3": "convs.3.noise_const",
}
ROSINALITY_D = {
    "convs.0.0.weight": "from_rgb.weight",
    "convs.0.1.bias": "from_rgb.bias",
    "convs.1.conv1.0.weight": "blocks.0.conv1.weight",
    "convs.1.conv2.1.weight": "blocks.0.conv2.weight",
    "convs.2.conv2.2.bias": "blocks.1.conv2.bias",
    "convs.2.skip.1.weight": "blocks.1.skip.weight",
    "final_conv.0.weight": "conv.weight",
    "final_linear.0.bias": "linear.bias",
    "final_linear.1.weight": "output.weight",
}


@pytest.fixture(scope="module")
def weights():
    return networks(source_model())


def same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) and first[key].shape == second[key].shape for key in first)


def test_names_and_shapes_of_rosinality(weights):
    file = to_rosinality(weights)
    assert file.keys() == {"g", "g_ema", "d", "latent_avg"}
    for theirs, ours in ROSINALITY.items():
        assert torch.equal(file["g_ema"][theirs].flatten(), weights[f"generator_ema.{ours}"].flatten()), theirs
    for theirs, ours in ROSINALITY_D.items():
        assert torch.equal(file["d"][theirs], weights[f"discriminator.{ours}"]), theirs
    assert file["g"]["convs.0.conv.weight"].shape == (1, 8, 8, 3, 3) and file["g"]["to_rgbs.0.bias"].shape == (1, 3, 1, 1)
    assert torch.equal(file["latent_avg"], weights["generator_ema.w_mean"])
    assert file["g"]["convs.0.conv.blur.kernel"].sum() == 4 and file["d"]["convs.1.conv2.0.kernel"].sum() == 1


@pytest.mark.parametrize("prefix", ["", "module."])
def test_there_and_back(weights, prefix, tmp_path):
    file = {
        k: {prefix + n: v for n, v in part.items()} if k != "latent_avg" else part for k, part in to_rosinality(weights).items()
    }
    torch.save(file, tmp_path / "file.pt")
    expected = {**weights, "generator.w_mean": weights["generator_ema.w_mean"]}  # such files have one mean
    same(read_style_checkpoint(tmp_path / "file.pt")[0], expected)


def test_old_and_partial_files(weights):
    file = to_rosinality(weights)
    for part in ("g", "g_ema"):
        file[part] = {key: value for key, value in file[part].items() if "noise_" not in key and "kernel" not in key}
    del file["d"], file["g"]
    state = from_rosinality(file)
    assert {key.split(".")[0] for key in state} == {"generator_ema"}
    assert state["generator_ema.convs.3.noise_const"].shape == (1, 1, 16, 16)


@pytest.mark.parametrize("part", ["g", "d"])
def test_every_tensor_is_accounted_for(weights, part):
    file = to_rosinality(weights)
    name = "conv1.conv.weight" if part == "g" else "final_conv.1.bias"
    file[part]["surplus.weight"] = file[part].pop(name)
    with pytest.raises(UserError, match=f"missing {name}; unexpected surplus.weight"):
        from_rosinality(file)


@pytest.mark.parametrize("layout", [[], ["rosinality"]])
def test_the_networks_of_a_training_s_checkpoint_are_exported(weights, layout, tmp_path):
    equal_means = weights | {"generator.w_mean": weights["generator_ema.w_mean"]}  # rosinality's files have one
    torch.save({"state_dict": {**equal_means, "path_mean": torch.tensor(1.0)}}, tmp_path / "last.ckpt")
    assert main([str(tmp_path / "last.ckpt"), str(tmp_path / "out/weights.pt"), *layout]) == 0
    content = torch.load(tmp_path / "out/weights.pt", weights_only=True)
    assert content.keys() == ({"g", "g_ema", "d", "latent_avg"} if layout else equal_means.keys())
    same(read_style_checkpoint(tmp_path / "out/weights.pt")[0], equal_means)


@pytest.mark.parametrize(
    ("more", "layout", "message"),
    [
        ({"miner.layers.0.weight": torch.zeros(1)}, [], "last.ckpt holds no plain StyleGAN2"),
        ({"generator.convs.0.after_conv.scale": torch.ones(8)}, [], "generator: convs.0.after_conv.scale cannot be exported"),
        ({}, ["pickle"], "expected CHECKPOINT.ckpt WEIGHTS.pt [rosinality]"),
    ],
)
def test_what_cannot_be_exported_is_one_error(weights, more, layout, message, tmp_path, capsys):
    torch.save({"state_dict": weights | more}, tmp_path / "last.ckpt")
    assert main([str(tmp_path / "last.ckpt"), str(tmp_path / "weights.pt"), *layout]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "weights.pt").exists()


# --- pickles like NVIDIA's --------------------------------------------------------------------------------------------


class Persistent:
    """Pickled as NVIDIA's classes are: a call of their reconstructing function with source code and state."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        code = "raise SystemExit('source code of a pickle was run')"
        meta = sys.modules["dnnlib.util"].EasyDict(
            type="class", version=6, module_src=code, class_name=self.__class__.__name__, state=self.state
        )
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


class EasyDict(dict):
    pass


@pytest.fixture
def nvidia(monkeypatch):
    """Modules with the names that such pickles refer to."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise SystemExit("NVIDIA's function was called")

    for function, module in ((_reconstruct_persistent_obj, persistence), (EasyDict, util)):
        function.__module__, function.__qualname__ = module.__name__, function.__name__
        setattr(module, function.__name__, function)
    for module in (types.ModuleType("torch_utils"), persistence, types.ModuleType("dnnlib"), util):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def record(tensors: dict):
        parameters, buffers, children = OrderedDict(), OrderedDict(), {}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = value
            elif first in ("w_avg", "noise_const", "resample_filter"):
                buffers[first] = value
            else:
                parameters[first] = nn.Parameter(value)
        modules = OrderedDict((name, record(child)) for name, child in children.items())
        return Persistent({"training": False, "_parameters": parameters, "_buffers": buffers, "_modules": modules,
                           "_non_persistent_buffers_set": set()})  # fmt: skip

    return record


def nvidia_generator(weights, part) -> dict:
    """A 16-pixel generator by NVIDIA's names."""
    own = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
    state = {"mapping.w_avg": own["w_mean"], "synthesis.b4.const": own["const"][0]}
    state |= {f"mapping.fc{i}.{k}": own[f"mapping_layers.{i}.{k}"] for i in range(2) for k in ("weight", "bias")}
    layers = {"b4.conv1": 0, "b8.conv0": 1, "b8.conv1": 2, "b16.conv0": 3, "b16.conv1": 4}
    for name, i in layers.items():
        state |= {f"synthesis.{name}.affine.{k}": own[f"convs.{i}.conv.affine.{k}"] for k in ("weight", "bias")}
        state |= {f"synthesis.{name}.weight": own[f"convs.{i}.conv.weight"], f"synthesis.{name}.bias": own[f"convs.{i}.bias"]}
        state |= {f"synthesis.{name}.noise_strength": own[f"convs.{i}.noise_strength"][0]}
        state |= {f"synthesis.{name}.noise_const": own[f"convs.{i}.noise_const"][0, 0]}
        state |= {f"synthesis.{name}.resample_filter": torch.ones(4, 4) / 16}
    for i, side in enumerate((4, 8, 16)):
        state |= {f"synthesis.b{side}.torgb.affine.{k}": own[f"to_rgb.{i}.conv.affine.{k}"] for k in ("weight", "bias")}
        state |= {f"synthesis.b{side}.torgb.weight": own[f"to_rgb.{i}.conv.weight"]}
        state |= {f"synthesis.b{side}.torgb.bias": own[f"to_rgb.{i}.bias"]}
    return state


def nvidia_discriminator(weights) -> dict:
    own = {key.removeprefix("discriminator."): value for key, value in weights.items() if key.startswith("discriminator.")}
    state = {f"b16.fromrgb.{k}": own[f"from_rgb.{k}"] for k in ("weight", "bias")}
    for q, side in enumerate((16, 8)):
        for theirs, ours in (("conv0", "conv1"), ("conv1", "conv2")):
            state |= {f"b{side}.{theirs}.{k}": own[f"blocks.{q}.{ours}.{k}"] for k in ("weight", "bias")}
        state[f"b{side}.skip.weight"] = own[f"blocks.{q}.skip.weight"]
        state[f"b{side}.conv1.resample_filter"] = torch.ones(4, 4) / 16
    for theirs, ours in (("conv", "conv"), ("fc", "linear"), ("out", "output")):
        state |= {f"b4.{theirs}.{k}": own[f"{ours}.{k}"] for k in ("weight", "bias")}
    return state


def test_a_pickle_of_nvidia_is_read_without_running_its_code(weights, nvidia, tmp_path):
    pickled = {
        "G": nvidia(nvidia_generator(weights, "generator")),
        "G_ema": nvidia(nvidia_generator(weights, "generator_ema")),
        "D": nvidia(nvidia_discriminator(weights)),
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset"),
        "augment_pipe": None,
    }
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(pickled))
    same(read_style_checkpoint(tmp_path / "network.pkl")[0], weights)
    drawn, source = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule", tmp_path / "network.pkl"
    config = load_config(["configs/stylegan2.yaml", *TINY, "module.epochs=null", drawn, "trainer.accelerator=cpu",
                          "callbacks=null", f"run_dir={tmp_path / 'run'}", f"module.source_checkpoint={source}"])  # fmt: skip
    same(networks(train.prepare(config, dry_run=True)[1]), weights)  # as train.py reads it


def test_an_incomplete_pickle_is_an_error(weights, nvidia):
    state = nvidia_generator(weights, "generator_ema")
    state["synthesis.b8.more"] = state.pop("synthesis.b8.conv1.bias")
    with pytest.raises(UserError, match=r"missing synthesis.b8.conv1.bias; unexpected synthesis.b8.more"):
        from_nvidia(read_nvidia_pickle(pickle.dumps({"G_ema": nvidia(state)})))


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [(os.system, ("echo attacked",), "system"), (eval, ("1",), "builtins.eval"), (getattr, ({}, "x"), "builtins.getattr")],
)
def test_pickles_that_would_run_code_are_refused(function, arguments, name):
    with pytest.raises(UserError, match=f"refused, loading it would run code .*{name}"):
        read_nvidia_pickle(pickle.dumps({"G_ema": Attack(function, *arguments)}))


def test_a_storage_cannot_smuggle_code():
    buffer = io.BytesIO()
    torch.save(Attack(os.system, "echo attacked"), buffer, _use_new_zipfile_serialization=False)
    attack = Attack(torch.storage._load_from_bytes, buffer.getvalue())
    with pytest.raises(UserError, match="not a checkpoint"):
        read_nvidia_pickle(pickle.dumps({"G_ema": attack}))


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="the pickle holds no G or G_ema"):
        read_nvidia_pickle(pickle.dumps({"x": 1}))
    with pytest.raises(UserError, match="not a checkpoint, or a damaged one"):
        read_nvidia_pickle(b"\x80\x04 nonsense")
    with pytest.raises(FileNotFoundError):
        read_style_checkpoint(tmp_path / "none.pkl")
    tensorflow = b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81."
    with pytest.raises(UserError, match="a pickle of TensorFlow"):
        read_nvidia_pickle(tensorflow)
