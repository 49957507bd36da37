"""From a node to an object, or to what a user reads."""

import pytest
from omegaconf import OmegaConf

from cli.build import build
from cli.schema import complete
from core.errors import ErrorCollector, UserError

CHECKPOINT = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def test_build_passes_the_given_keys_as_plain_values_of_the_right_type():
    node = {"class_path": "datamodules.synthetic.SyntheticDataModule", "image_size": [12, 16], "batch_size": 2}
    data = build(OmegaConf.create(node))
    assert type(data).__name__ == "SyntheticDataModule" and data.batch_size == 2 and data.samples_per_epoch == 4000
    assert type(data.image_size) is list and data.image_size == [12, 16]
    callback = build(OmegaConf.create({"class_path": "callbacks.image_grid.ImageGrid", "seed": 3}))
    assert (callback.seed, callback.num_images) == (3, 16)


def test_build_injects_objects_that_yaml_cannot_hold():
    callback = build(OmegaConf.create({"class_path": "callbacks.image_grid.ImageGrid"}))
    node = OmegaConf.create({"class_path": "lightning.Trainer", "accelerator": "cpu"})
    assert callback in build(node, callbacks=[callback], logger=[]).callbacks
    node.callbacks = []
    assert "callbacks" in refusal(build, node, callbacks=[callback])


def config_with(**node):
    return OmegaConf.create({"callbacks": {"own": node}}).callbacks.own


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        ({"class_path": "os.system"}, ["callbacks.own.class_path", "os.system", "modules."]),
        ({"class_path": "moduleslike.X"}, ["callbacks.own.class_path", "modules."]),
        ({"seed": 1}, ["callbacks.own.class_path", "None"]),
        ({"class_path": "callbacks.image_gird.ImageGrid"}, ["callbacks.own.class_path", "callbacks.image_gird"]),
        ({"class_path": "callbacks.image_grid.ImageGird"}, ["callbacks.own.class_path", "Did you mean ImageGrid"]),
        ({"class_path": "callbacks.image_grid.evaluating"}, ["no class evaluating"]),
        ({**CHECKPOINT, "save_topk": 1}, ["callbacks.own.save_topk", "ModelCheckpoint", "save_top_k"]),
        ({**CHECKPOINT, "zzz": 1}, ["callbacks.own.zzz", "ModelCheckpoint", "It has:", "save_top_k"]),
        ({**CHECKPOINT, "save_top_k": "many"}, ["callbacks.own.save_top_k", "int", "'many'"]),
        ({**CHECKPOINT, "save_top_k": 1.5}, ["callbacks.own.save_top_k", "int", "1.5"]),
        ({**CHECKPOINT, "verbose": [1]}, ["callbacks.own.verbose", "bool", "[1]"]),
        ({**CHECKPOINT, "mode": 7}, ["callbacks.own.mode", "str", "7", "Quote"]),
        ({**CHECKPOINT, "filename": False}, ["callbacks.own.filename", "str", "False", "Quote"]),
        ({"class_path": "lightning.pytorch.callbacks.EarlyStopping"}, ["callbacks.own.monitor", "missing"]),
        ({"class_path": "datamodules.image_datamodule.ImageDataModule", "root": "a", "image_size": [1, "x"]},
         ["callbacks.own.image_size", "[height, width]", "'x'"]),
        ({"class_path": "lightning.pytorch.loggers.WandbLogger", "projct": "x"}, ["callbacks.own.projct", "project"]),
    ],
)  # fmt: skip
def test_a_node_that_does_not_fit_its_class_is_refused_with_the_full_key(node, parts):
    message = refusal(build, config_with(**node))
    assert all(part in message for part in parts), message


def test_a_class_with_open_keywords_takes_more_than_it_names():
    node, mistakes = {"class_path": "lightning.pytorch.loggers.WandbLogger", "entity": "team", "project": "x"}, ErrorCollector()
    assert complete(node, "logger.own", mistakes) == node and not mistakes


def test_values_that_a_constructor_refuses_are_reported_with_the_key():
    node = config_with(class_path="modules.gpnn.GPNN", image_size=[16, 20], min_size=6)
    assert refusal(build, node).startswith("callbacks.own: min_size is 6, patch 7")
