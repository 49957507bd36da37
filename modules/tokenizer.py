"""A frozen VQGAN, by which methods turn images into maps of codes and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core.errors import UserError
from core.files import shipped_file
from modules.base import GenerativeModule
from modules.networks.vqgan_checkpoints import read_autoencoder
from modules.vqgan import VQGAN


def load_vqgan(path: str) -> VQGAN:
    """The autoencoder in a file that `read_autoencoder` takes, frozen and without discriminator."""
    return frozen_vqgan(*read_autoencoder(path))


def frozen_vqgan(checkpoint: Mapping[str, Any], sha256: str) -> VQGAN:
    """The autoencoder in a checkpoint that `read_autoencoder` has read, frozen and without discriminator."""
    module = empty_vqgan(checkpoint["hyper_parameters"])
    module.load_state_dict(module.convert(checkpoint))
    module.source_sha256 = sha256
    return module


def empty_vqgan(settings: Mapping[str, Any]) -> VQGAN:
    """A frozen VQGAN with these hyper-parameters, without discriminator, to load weights into."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        module = VQGAN(**settings)
    del module.discriminator
    module.source_sha256 = ""  # complete: it quantizes
    return module.eval().requires_grad_(False)


class OnCodes(GenerativeModule):
    """Mixin of methods that work on the codes of a frozen autoencoder, the submodule `tokenizer`.

    It is read from the file of the hyper-parameter `tokenizer_checkpoint` when training begins, and is part of checkpoints.
    To be named before the base of the method.
    """

    tokenizer: VQGAN | None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.tokenizer = None

    def frozen(self) -> list[nn.Module]:
        return [] if self.tokenizer is None else [self.tokenizer]

    def check_tokenizer(self) -> None:
        """UserError if the method cannot work on the codes of this autoencoder."""
        if self.image_size != self.tokenizer.image_size:
            value, expected = list(self.image_size), list(self.tokenizer.image_size)
            raise UserError(f"module.image_size is {value}; expected {expected}, the autoencoder's")

    def start_from_source(self) -> tuple[str, Any, str]:
        path = self.hparams.tokenizer_checkpoint
        try:
            source, self.source_sha256 = read_autoencoder(shipped_file(path))
            self.tokenizer = frozen_vqgan(source, self.source_sha256).to(self.device)
            self.check_tokenizer()
        except (UserError, OSError) as error:
            raise UserError(f"module.tokenizer_checkpoint={path}: {str(error).removeprefix(f'{path}: ')}") from None
        return path, source, self.source_sha256

    def on_fit_start(self) -> None:
        if self.tokenizer is None:  # neither resumed nor loaded by train.py
            self.start_from_source()
        super().on_fit_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer"] = dict(self.tokenizer.hparams) if self.tokenizer is not None else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["tokenizer"] is not None:
            self.tokenizer = empty_vqgan(checkpoint["tokenizer"]).to(self.device)
