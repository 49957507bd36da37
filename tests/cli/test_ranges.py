"""Ranges and choices of constructors, as a user meets them: by the annotation at the parameter."""

from typing import Any

import pytest

from cli.schema import complete, describe, signature_of
from core.errors import ErrorCollector

# Class, values that are refused, and what the message says is allowed.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("modules.fewgan.FewGAN", {"num_codes": 0, "width": 0, "revive_every": 0, "prior_layers": -1, "min_size": 0}, "int >= 1"),
    ("modules.fewgan.FewGAN", {"position_weight": -1.0, "weight_gp": -0.1, "clip_norm": -5}, "float >= 0"),
    ("modules.fewgan.FewGAN", {"scale_factor": 1.5}, "float > 0 and < 1"),
    ("modules.fewgan.FewGAN", {"prior_dropout": 1.0}, "float >= 0 and < 1"),
    ("modules.fewgan.FewGAN", {"lr_g": 0, "lr_d": -1e-4, "prior_lr": ".nan"}, "float > 0"),
    ("modules.fewgan.FewGAN", {"betas": [0.5, 1.0]}, "both >= 0 and < 1"),
    ("modules.fewgan.FewGAN", {"epochs_per_stage": [1, 0, 1]}, "int >= 1 or list[int >= 1]"),
    ("modules.fewgan.FewGAN", {"image_size": [16]}, "[height, width]"),
    ("modules.hpvaegan.HPVAEGAN", {"width": 0, "latent_dim": 0, "vae_levels": 0}, "int >= 1"),
    ("modules.hpvaegan.HPVAEGAN", {"weight_gp": -1.0, "weight_kl": -1, "clip_norm": -5.0}, "float >= 0"),
    ("modules.hpvaegan.HPVAEGAN", {"squash": "add"}, "'sum' or 'residual'"),
    ("modules.hpvaegan.HPVAEGAN", {"bn_mode": "train"}, "'eval' or 'batch'"),
    ("modules.singan.SinGAN", {"d_steps": 0, "g_steps": 0, "scales_per_width": 0, "paint_colors": 0}, "int >= 1"),
    ("modules.singan.SinGAN", {"tiles": [0, 2]}, "list[int >= 1, int >= 1]"),
    ("modules.singan.SinGAN", {"noise_padding": "mirror"}, "'zeros' or 'noise'"),
    ("modules.singan.SinGAN", {"norm": "group"}, "'batch' or 'none'"),
    ("modules.consingan.ConSinGAN", {"mode": "harmonisation"}, "Did you mean harmonization"),
    ("modules.consingan.ConSinGAN", {"train_depth": 0, "d_steps": 0, "num_layers": 0}, "int >= 1"),
    ("modules.gpnn.GPNN", {"backend": "faiss"}, "'exact' or 'patchmatch'"),
    ("modules.gpnn.GPNN", {"max_images": 0, "iterations": 0, "sweeps": 0}, "int >= 1"),
    ("modules.gpnn.GPNN", {"alpha": 0}, "float > 0 or null"),
    ("callbacks.image_grid.ImageGrid", {"num_images": 1}, "int >= 2"),
    ("callbacks.adaptation_curve.AdaptationCurve", {"num_images": 1}, "int >= 2"),
    ("callbacks.image_grid.ImageGrid", {"every_n_epochs": 0, "log_every_n_epochs": 0}, "int >= 1"),
    ("callbacks.sample_metrics.SampleMetrics", {"num_images": 0, "chunk": 0, "sampling_seeds": 0}, "int >= 1"),
    ("callbacks.stage_checkpoint.StageCheckpoint", {"every_n_epochs": 0}, "int >= 1"),
    ("callbacks.stage_checkpoint.StageCheckpoint", {"save_top_k": -2}, "int >= -1"),
    ("callbacks.stage_checkpoint.StageCheckpoint", {"mode": "most"}, "'min' or 'max'"),
    ("callbacks.stage_checkpoint.StageCheckpoint", {"upload": ["lasst"]}, "'last' or 'best' or 'stages'"),
    ("datamodules.image_datamodule.ImageDataModule", {"batch_size": 0, "samples_per_epoch": 1.5}, "int >= 1"),
    ("datamodules.image_datamodule.ImageDataModule", {"num_workers": -1}, "int >= 0"),
    ("datamodules.image_datamodule.ImageDataModule", {"heldout_fraction": 1.0}, "float > 0 and < 1"),
    ("datamodules.image_datamodule.ImageDataModule", {"seed": 2**32}, "int from 0 to 2^32 - 1"),
    ("reports.compare.Compare", {"num_shown": 0, "num_nearest": 0}, "int >= 1"),
    ("tasks.generate.Generate", {"seed": 99999999999999999999}, "int from 0 to 2^32 - 1"),
    ("modules.gpdm.GPDM", {"steps": 0, "projections": 0, "patch": 0}, "int >= 1"),
]
# Whatever the class: no seed, batch size, learning rate or path is of another type than all others of its kind.
KINDS = {"seed": "int from 0 to 2^32 - 1", "batch_size": "int >= 1", "lr_g": "float > 0", "root": "path"}


def required(class_path: str) -> dict[str, Any]:
    values = {"image_size": [16, 20], "root": "a", "side_root": "b", "image": "a.png", "mask": "b.png", "dirpath": "c"}
    return {name: values[name] for name, p in signature_of(class_path).items() if p.default is p.empty and name in values}


@pytest.mark.parametrize(("class_path", "values", "allowed"), CASES)
def test_values_out_of_range_are_refused_by_name(class_path: str, values: dict[str, Any], allowed: str) -> None:
    for name, value in values.items():
        mistakes = ErrorCollector()
        complete({"class_path": class_path, **required(class_path), name: value}, "node", mistakes)
        assert list(mistakes) == [f"node.{name}"]
        message = mistakes[f"node.{name}"]
        assert message.startswith(f"node.{name}: expected ") and allowed in message and repr(value) in message, message


@pytest.mark.parametrize("class_path", sorted({class_path for class_path, *_ in CASES}))
def test_a_name_has_one_type_in_all_classes(class_path: str) -> None:
    for name, parameter in signature_of(class_path).items():
        if name in KINDS:
            assert describe(parameter.annotation) == KINDS[name], name
