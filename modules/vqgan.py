"""VQGAN (Esser, Rombach & Ommer 2021, arXiv 2012.09841), first stage: an autoencoder between images and maps of codes."""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import (
    BelowOne,
    Betas,
    ImageSize,
    NonNegativeFloat,
    NonNegativeInt,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Probability,
)  # fmt: skip
from modules.losses.adversarial import hinge_d
from modules.losses.perceptual import PerceptualLoss
from modules.networks.patch_discriminator import PatchDiscriminator
from modules.networks.quantizer import VectorQuantizer, rows_of
from modules.networks.vqgan_autoencoder import Decoder, Encoder
from modules.networks.vqgan_checkpoints import (
    CLASS_PATH,
    PARTS,
    NotVQGAN,
    autoencoder_part,
    fitting_weights,
    read_autoencoder,
)  # fmt: skip
from modules.ops.codes import code_usage
from modules.ops.images import resize
from modules.ops.kmeans import kmeans
from modules.staged import StagedModule

MAX_BATCH_PIXELS = 2**18  # that are encoded or decoded together, whatever the size of an image
REVIVAL_SHARE = 0.03  # of the mean usage, below which a code counts as dead
MAX_MEASURED = 500  # images of the diagnostics


class VQGAN(StagedModule):
    """Encoder, vector quantizer and decoder; from `disc_start` on with a patch discriminator.

    It has no prior, and so no samples of its own: `modules.vqgan_transformer` and `modules.latentpatch` generate codes.

    Args:
        image_size: [height, width] of training; other multiples of `downsampling` work, too.
        ch, ch_mult, num_res_blocks, attn_resolutions, z_channels, unshuffle: see `networks.vqgan_autoencoder.Encoder`.
        embed_dim, num_codes: L and K of the code book.
        beta, legacy, ema: see `networks.quantizer.VectorQuantizer`; the public checkpoints were trained with `legacy`.
        bypass: iterations without quantization, after which k-means gives the code book; 0 in the paper.
        revive_every: iterations between two replacements of codes that are hardly used; 0: never.
        weight_gradient: of the L1 distance of the images' gradients; 0 in the paper.
        weight_perceptual, perceptual: see `losses.perceptual.PerceptualLoss`; null: no such term.
        perceptual_start: iteration from which on the perceptual term counts.
        disc_start: iteration from which on discriminator and adversarial term exist.
        disc_weight: of the adversarial term, times the adaptive weight (Eq. 7).
        disc_layers, disc_channels, disc_norm: see `networks.patch_discriminator.PatchDiscriminator`.
        lr: of both optimizers; released code: 4.5e-6 for each image of an iteration.
        warmup, decay_from: iterations in which the rate rises; share of the training after which it falls to 0.
        source_checkpoint: weights to begin with: a file of this project, or a public one of taming-transformers or
            latent-diffusion.
    """

    fixed_size = True
    no_samples = "VQGAN has no prior; train configs/vqgan_transformer.yaml or configs/latentpatch.yaml on its codes"
    collapse_advice = "another seed, a smaller module.lr, a longer module.bypass, more training images"

    def __init__(
        self,
        image_size: ImageSize,
        epochs: PositiveInt = 20,
        ch: PositiveInt = 128,
        ch_mult: Annotated[list[PositiveInt], Field(min_length=1)] = (1, 1, 2, 2, 4),
        num_res_blocks: PositiveInt = 2,
        attn_resolutions: list[PositiveInt] = (16,),
        z_channels: PositiveInt = 256,
        embed_dim: PositiveInt = 256,
        num_codes: PositiveInt = 1024,
        unshuffle: PositiveInt = 1,
        dropout: BelowOne = 0.0,
        beta: NonNegativeFloat = 0.25,
        legacy: bool = False,
        ema: bool = False,
        bypass: NonNegativeInt = 0,
        revive_every: NonNegativeInt = 0,
        weight_gradient: NonNegativeFloat = 0.0,
        weight_perceptual: NonNegativeFloat = 1.0,
        perceptual: PathStr | None = None,
        perceptual_start: NonNegativeInt = 0,
        disc_start: NonNegativeInt = 30_001,
        disc_weight: NonNegativeFloat = 0.8,
        disc_layers: PositiveInt = 3,
        disc_channels: PositiveInt = 64,
        disc_norm: Literal["batch", "spectral"] = "batch",
        lr: PositiveFloat = 5.4e-5,
        betas: Betas = (0.5, 0.9),
        warmup: NonNegativeInt = 0,
        decay_from: Probability = 1.0,
        clip_norm: PositiveFloat | None = None,
        source_checkpoint: PathStr | None = None,
    ) -> None:
        super().__init__(epochs)
        self.save_hyperparameters()
        self.image_size, self.downsampling = tuple(image_size), unshuffle * 2 ** (len(ch_mult) - 1)
        if any(side % self.downsampling for side in self.image_size):
            raise UserError(f"image_size is {list(image_size)}; the sides have to be multiples of {self.downsampling}")
        if wrong := [ch * factor for factor in (1, *ch_mult) if ch * factor % 32]:
            raise UserError(f"ch, ch_mult: {wrong[0]} channels; group norm needs multiples of 32")
        attention, side = list(attn_resolutions), min(self.image_size)
        shape = (side, ch, list(ch_mult), num_res_blocks, attention, z_channels, dropout, unshuffle)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantize = VectorQuantizer(num_codes, embed_dim, beta, legacy, ema)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.discriminator = PatchDiscriminator(disc_layers, disc_channels, disc_norm)
        self._perceptual: PerceptualLoss | None = None
        self._epoch_codes: Tensor | None = None

    # --- images <-> codes ---------------------------------------------------------------------------------------------

    @property
    def codebook(self) -> Tensor:
        """Entries [K, embed_dim]."""
        return self.quantize.embedding.weight.detach()

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the map of codes of an image."""
        return tuple(side // self.downsampling for side in self.image_size)

    @property
    def _at_once(self) -> int:
        return max(1, MAX_BATCH_PIXELS // math.prod(self.image_size))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes [N, H / f, W / f] of images [N, 3, H, W] in [-1, 1]."""
        return torch.cat([self.quantize.codes(self.quant_conv(self.encoder(part))) for part in images.split(self._at_once)])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [N, 3, f h, f w] in [-1, 1] of latents [N, embed_dim, h, w], such as code book entries."""
        return torch.cat([self.decoder(self.post_quant_conv(part)).clamp(-1, 1) for part in latents.split(self._at_once)])

    def decode(self, codes: Tensor) -> Tensor:
        """Images [N, 3, f h, f w] in [-1, 1] of codes [N, h, w]."""
        return self.decode_latents(self.quantize.lookup(codes))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        f, size = self.downsampling, tuple(images.shape[-2:])
        inputs = resize(images, tuple(-(-side // f) * f for side in size))
        if self.quantizes:
            return resize(self.decode(self.encode(inputs)), size)
        return resize(self.decode_latents(self.quant_conv(self.encoder(inputs))), size)

    autoencode = reconstruct

    @property
    def quantizes(self) -> bool:
        """False while the code book does not exist yet."""
        return self.iteration >= self.hparams.bypass or self.source_sha256 is not None

    def identity(self) -> str:
        """SHA-256 over the weights of the autoencoder: codes of one are meaningless for another."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.autoencoder_state().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def autoencoder_state(self) -> dict[str, Tensor]:
        """The weights of encoder, code book and decoder, without those that only training needs."""
        return autoencoder_part(self.state_dict())

    # --- training -----------------------------------------------------------------------------------------------------

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        rate, betas = self.hparams.lr, tuple(self.hparams.betas)
        autoencoder = [p for name in PARTS for p in getattr(self, name).parameters()]
        return [Adam(parameters, rate, betas) for parameters in (autoencoder, self.discriminator.parameters())]

    def cache_stage(self, stage: int) -> None:
        hp = self.hparams
        if hp.perceptual and hp.weight_perceptual:
            self._perceptual = PerceptualLoss(hp.perceptual, self.device)
        name = self._perceptual.name if self._perceptual else "none"
        rank_zero_info(f"VQGAN: perceptual term {name}")

    @property
    def adversarial(self) -> bool:
        return self.iteration >= self.hparams.disc_start and self.hparams.disc_weight > 0

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        images, hp = batch["image"], self.hparams
        g_opt, d_opt = self.current_optimizers()
        self._set_rate(batch_idx)
        latents = self.quant_conv(self.encoder(images))
        quantized, codes, loss_q = self.quantize(latents) if self.quantizes else (latents, None, latents.new_zeros(()))
        outputs = self.decoder(self.post_quant_conv(quantized))
        terms = self._reconstruction_terms(outputs, images)
        nll = sum(weight * term for weight, term in terms.values())
        logs = {name: term for name, (_, term) in terms.items()} | {"codebook": loss_q}

        with self.toggled_optimizer(g_opt):
            loss = nll + loss_q
            if self.adversarial:  # Released code: D is evaluated, with weight 0, before disc_start; here: not at all
                fooling = -self.discriminator(outputs).mean()
                weight = self._adaptive_weight(nll, fooling)
                loss = loss + hp.disc_weight * weight * fooling
                logs |= {"adversarial": fooling, "adaptive_weight": weight}
            self.optimize(g_opt, loss, hp.clip_norm)
        if self.adversarial:  # Released code: on outputs of the stepped autoencoder; here: on the same ones
            with self.toggled_optimizer(d_opt):
                loss_d = 0.5 * hinge_d(self.discriminator(images), self.discriminator(outputs.detach()))
                self.optimize(d_opt, loss_d)
                logs["d_loss"] = loss_d

        if codes is not None:
            self._update_codes(latents.detach(), codes)
        if self.iteration + 1 == hp.bypass:
            self._start_codes()
        self.log_training({"g_loss": loss, **logs}, len(images))

    def _reconstruction_terms(self, outputs: Tensor, images: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term by name (Eq. 5, with L1 in place of the squared error as in the released code)."""
        hp, terms = self.hparams, {"reconstruction": (1.0, (outputs - images).abs().mean())}
        if hp.weight_gradient:
            differences = outputs - images
            gradients = [differences.diff(dim=dim).abs().mean() for dim in (2, 3)]
            terms["gradient"] = hp.weight_gradient, sum(gradients) / 2
        if self._perceptual is not None and self.iteration >= hp.perceptual_start:
            terms["perceptual"] = hp.weight_perceptual, self._perceptual(outputs, images).mean()
        return terms

    def _adaptive_weight(self, nll: Tensor, fooling: Tensor) -> Tensor:
        """Eq. 7: the gradients of both terms get the same norm in the decoder's last layer; of the mean over ranks."""
        last = self.decoder.conv_out.weight
        gradients = torch.stack([torch.autograd.grad(term, last, retain_graph=True)[0] for term in (nll, fooling)])
        norms = self.mean_over_ranks(gradients.float()).flatten(1).norm(dim=1)
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    def _set_rate(self, batch_idx: int) -> None:
        hp, progress = self.hparams, (self.current_epoch + batch_idx / self.trainer.num_training_batches) / self.hparams.epochs
        factor = min(1.0, (self.iteration + 1) / max(hp.warmup, 1))
        if progress > hp.decay_from:
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - hp.decay_from) / (1 - hp.decay_from))))
        for optimizer in self.current_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = hp.lr * factor

    def _total(self, values: Tensor) -> Tensor:
        return self.mean_over_ranks(values) * self.trainer.world_size

    # --- code book ----------------------------------------------------------------------------------------------------

    def _update_codes(self, latents: Tensor, codes: Tensor) -> None:
        hp, counts = self.hparams, torch.bincount(codes.flatten(), minlength=self.quantize.num_codes)
        self._epoch_codes = counts if self._epoch_codes is None else self._epoch_codes + counts
        self.quantize.update(latents, codes, self._total)
        if hp.revive_every and (self.iteration + 1) % hp.revive_every == 0:
            usage = self.quantize.usage
            dead = (usage < REVIVAL_SHARE * usage.mean()).nonzero().squeeze(1)
            if len(dead):
                self.quantize.replace(dead, self._random_latents(len(dead), "revival"), float(usage.mean()))
            self.log("train/revived", float(len(dead)), batch_size=1)

    @torch.no_grad()
    def _start_codes(self) -> None:
        """The code book by k-means on vectors of training images, equal on all ranks."""
        num_codes = self.quantize.num_codes
        latents, stream = self._random_latents(50 * num_codes, "kmeans"), self.random_stream("centers", shared=True)
        centers = kmeans(latents, num_codes, stream)
        centers = self.trainer.strategy.broadcast(centers.cpu()).to(self.device)  # sums are not deterministic on GPUs
        vectors = self.trainer.datamodule.batch_size * self.trainer.world_size * math.prod(self.grid)
        self.quantize.replace(torch.arange(num_codes, device=self.device), centers, vectors / num_codes)

    @torch.no_grad()
    def _random_latents(self, num_vectors: int, purpose: str) -> Tensor:
        """Vectors [num_vectors, L] of random training images at random places, equal on all ranks."""
        images, stream = self.training_sets["image"], self.random_stream(purpose, shared=True)
        num_images = min(len(images), -(-num_vectors // math.prod(self.grid)) + 3)
        picks = torch.randperm(len(images), generator=stream)[:num_images].tolist()
        pictures = torch.stack([images[i] for i in picks]).to(self.device, self.dtype)
        rows = torch.cat([rows_of(self.quant_conv(self.encoder(part))) for part in pictures.split(self._at_once)])
        order = torch.randperm(len(rows), generator=stream)
        rows = rows[order.repeat(-(-num_vectors // len(rows)))[:num_vectors].to(rows.device)]
        return self.trainer.strategy.broadcast(rows.cpu()).to(self.device)

    def on_train_epoch_end(self) -> None:
        if self._epoch_codes is not None:
            counts = self._total(self._epoch_codes.double())
            shares = counts[counts > 0] / counts.sum()
            perplexity = torch.exp(-(shares * shares.log()).sum())
            self.log_epoch({"codes_used": (counts > 0).double().mean(), "code_perplexity": perplexity})
            self._epoch_codes = None
        super().on_train_epoch_end()

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """PSNR in dB of training and held-out images, use and perplexity of the code book on the latter."""
        numbers = {}
        for name in ("image", "image_heldout"):
            if name in sets and len(sets[name]):
                psnr, codes = self.quality(sets[name])
                numbers |= {"psnr" if name == "image" else "psnr_heldout": psnr}
                numbers["codes_used"], numbers["code_perplexity"] = code_usage(codes, self.quantize.num_codes)
        if "psnr_heldout" in numbers:
            numbers["psnr_gap"] = numbers["psnr"] - numbers["psnr_heldout"]
        return numbers

    @torch.no_grad()
    def quality(self, images: Dataset) -> tuple[float, Tensor]:
        """Mean PSNR in dB over at most 500 images, evenly chosen, and their codes."""
        picks = torch.linspace(0, len(images) - 1, min(len(images), MAX_MEASURED)).long().split(self._at_once)
        values, codes = [], []
        for part in picks:
            pictures = torch.stack([images[int(i)] for i in part]).to(self.device)
            errors = (self.reconstruct(pictures) - pictures).square().mean((1, 2, 3))
            values.append(10 * torch.log10(4 / errors))
            codes.append(self.encode(pictures))
        return float(torch.cat(values).mean()), torch.cat(codes)

    # --- files --------------------------------------------------------------------------------------------------------

    def read_source(self, path: str) -> tuple[Any, str]:
        return read_autoencoder(path)

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The autoencoder of a source file, and its discriminator if it has one of the same shapes."""
        state, current = checkpoint["state_dict"], self.state_dict()
        autoencoder = fitting_weights(state, current, min(self.image_size))
        rest = {key: value for key, value in state.items() if key.startswith("discriminator.")}
        fits = all(key in current and current[key].shape == value.shape for key, value in rest.items())
        return current | autoencoder | (rest if fits else {})

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """Also accepts a file without discriminator, such as one that `export` made."""
        if any(key.startswith("discriminator.") for key in checkpoint["state_dict"]):
            return super().from_checkpoint(checkpoint)
        module = cls(**checkpoint["hyper_parameters"])
        module.load_state_dict(module.convert(checkpoint))
        module.iteration, module.images_seen = checkpoint["iteration"], checkpoint.get("images_seen", 0)
        module.source_sha256 = checkpoint.get("source_sha256")
        return module.eval()

    def export(self) -> dict[str, Any]:
        """A checkpoint for `torch.save` that encodes and decodes, without discriminator and optimizers."""
        state = {key: value.detach().cpu().clone() for key, value in self.autoencoder_state().items()}
        facts = {key: getattr(self, key) for key in ("iteration", "images_seen", "source_sha256")}
        return {"class_path": CLASS_PATH, "hyper_parameters": dict(self.hparams), "state_dict": state, **facts}

    @classmethod
    def adopt(cls, path: str) -> dict[str, Any] | None:
        try:
            checkpoint, sha256 = read_autoencoder(path)
        except NotVQGAN:
            return None
        return {**checkpoint, "source_sha256": sha256}
