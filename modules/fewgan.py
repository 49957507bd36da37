"""FewGAN (Ben-Moshe, Benaim & Wolf 2022, arXiv 2207.11226): images from the joint patch distribution of a few photographs."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import BelowOne, Betas, ImageSize, NonNegativeFloat, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from modules.losses.adversarial import wasserstein_g
from modules.losses.structure import continuity_loss, ssim_loss
from modules.networks.patch_gan import PatchCritic, ResidualGenerator
from modules.networks.pixelcnn import GatedPixelCNN
from modules.networks.vqvae import VQGenerator
from modules.ops.codes import code_usage, order0_bits
from modules.ops.images import resize
from modules.ops.noise import randint
from modules.ops.scales import scale_sizes
from modules.pyramid import RefiningModule


class FewGAN(RefiningModule):
    """A vector-quantized generator at the coarsest scale, residual patch GANs above, a PixelCNN prior over the codes.

    Stages: scale 0, scales 1 ... T, then the prior, fitted to the codes of the side images. No scale takes noise, so that the
    frozen chain is computed once a stage. Defaults: HP-VAE-GAN, by the same group; the paper states beta only.

    Args:
        num_codes, code_dim: K and n_z of the code book; keep K below a tenth of the training images' coarse pixels.
        position_weight: lambda_pos; 0 lets any code appear anywhere.
        width: channels of all convolutions; `depth`: hidden layers of decoder, generators and critics.
        critic_on_side: the critic sees the side images' outputs as fakes, too, which turn neon green otherwise.
        weight_*: weights of the loss terms; a `weight_ssim` of 1 drives textures away from the photographs' (measured).
        revive_every: iterations between two re-seedings of codes that no training image uses.
        epochs_per_stage: one number, or three: scale 0, every further scale, prior; see `PyramidModule`.
        prior_patience: epochs without a better held-out likelihood after which the prior's training stops.
    """

    duration_settings = ("epochs_per_stage", "prior_patience")
    collapse_advice = (
        "another seed, smaller module.lr_g and module.lr_d, a larger module.weight_reconstruction, more iterations"
    )

    def __init__(
        self,
        image_size: ImageSize,
        epochs_per_stage: PositiveInt | list[PositiveInt] = 5,
        min_size: PositiveInt = 32,
        scale_factor: OpenFraction = 0.75,
        num_codes: PositiveInt = 256,
        code_dim: PositiveInt = 128,
        position_weight: NonNegativeFloat = 16.0,
        beta: NonNegativeFloat = 0.25,
        width: PositiveInt = 64,
        depth: PositiveInt = 5,
        encoder_depth: PositiveInt = 3,
        critic_on_side: bool = True,
        weight_reconstruction: NonNegativeFloat = 10.0,
        weight_codebook: NonNegativeFloat = 1.0,
        weight_adversarial: NonNegativeFloat = 1.0,
        weight_adversarial_side: NonNegativeFloat = 1.0,
        weight_ssim: NonNegativeFloat = 0.1,
        weight_continuity: NonNegativeFloat = 0.1,
        weight_gp: NonNegativeFloat = 0.1,
        lr_g: PositiveFloat = 5e-4,
        lr_d: PositiveFloat = 5e-4,
        betas: Betas = (0.5, 0.999),
        clip_norm: NonNegativeFloat = 5.0,
        revive_every: PositiveInt = 100,
        prior_width: PositiveInt = 64,
        prior_layers: PositiveInt = 8,
        prior_dropout: BelowOne = 0.1,
        prior_batch_size: PositiveInt = 16,
        prior_lr: PositiveFloat = 3e-4,
        prior_patience: PositiveInt = 5,
    ) -> None:
        super().__init__(image_size, scale_sizes(image_size, min_size, scale_factor), epochs_per_stage, more_stages=1)
        self.save_hyperparameters()
        self.prior_stage = self.num_scales
        vq = VQGenerator(num_codes, code_dim, position_weight, width, encoder_depth, depth)
        self.generators = nn.ModuleList([vq, *(ResidualGenerator(width, depth) for _ in self.sizes[1:])])
        # Spectral norm keeps the colors of scale 0 calm; above it blunts textures (kernel distances measured both ways).
        fine = (PatchCritic(width, depth, spectral=False, padding="reflect") for _ in self.sizes[1:])
        self.discriminators = nn.ModuleList([PatchCritic(width, depth), *fine])
        for networks in (self.generators, self.discriminators):
            networks.to(memory_format=torch.channels_last)  # 1.2 times as fast on a CPU
        priors = (GatedPixelCNN(num_codes, prior_width, prior_layers, dropout=prior_dropout) for _ in range(2))
        self.prior, self.prior_best = priors
        self.register_buffer("prior_best_bits", torch.tensor(math.inf))
        self.register_buffer("prior_stale_epochs", torch.tensor(0))
        self._inputs: dict[str, Tensor] = {}

    @property
    def top(self) -> int:
        return self.num_scales - 1  # those not trained yet change nothing

    @property
    def samples_ready(self) -> bool:
        return bool(self.prior_best_bits.isfinite())

    def stage_label(self, stage: int) -> str:
        return "prior" if stage == self.prior_stage else super().stage_label(stage)

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [self.prior] if stage == self.prior_stage else super().stage_modules(stage)

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        if stage == self.prior_stage:
            return [Adam(self.prior.parameters(), self.hparams.prior_lr)]
        return super().stage_optimizers(stage)

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        if "side" not in sets:
            raise UserError("FewGAN learns layouts from side images: set datamodule.side_root to a folder of further images")
        factor, name = max(zip(sets["image"].enlargement, sets["image"].files, strict=True))
        if factor > self.image_size[0] / self.sizes[0][0]:
            raise UserError(f"{name} is smaller than the coarsest scale {self.sizes[0]}: leave it out or lower min_size")

    def enter_stage(self, stage: int) -> None:
        if stage == 0:
            self._reseed(self.vq.quantizer.initialize)
        elif 1 < stage < self.prior_stage:
            for networks in (self.generators, self.discriminators):
                networks[stage].load_state_dict(networks[stage - 1].state_dict())

    def cache_stage(self, stage: int) -> None:
        sets = self.training_sets
        if stage == self.prior_stage:
            self._inputs = {name: self.each(sets[name], self._codes) for name in ("side", "side_heldout") if name in sets}
        elif stage > 0:
            size = self.sizes[stage]
            for name in ("image", "side"):
                self._inputs[name] = self.each(sets[name], lambda x: resize(self.reconstruct_at(x, stage - 1), size))

    @torch.no_grad()
    def _reseed(self, method: Callable[[Tensor, torch.Generator], object]) -> None:
        """Sets codes from the features of all training images; rank 0's, as sums of k-means are not deterministic on GPUs."""
        quantizer = self.vq.quantizer
        features = self.each(self.training_sets["image"], lambda x: self.vq.encode(self.coarse(x)))
        method(quantizer.add_coordinates(features), self.shared_generator())
        quantizer.codebook.copy_(self.trainer.strategy.broadcast(quantizer.codebook.detach().cpu()))

    @property
    def vq(self) -> VQGenerator:
        return self.generators[0]

    def _codes(self, images: Tensor) -> Tensor:
        return self.vq.codes(self.coarse(images))

    @torch.no_grad()
    def sample(
        self, num_images: int, size: tuple[int, int] | None = None, temperature: PositiveFloat = 1.0,
        top_k: PositiveInt | None = None,
    ) -> Tensor:  # fmt: skip
        codes = self.prior_best.sample(num_images, self.size_at(0, size or self.image_size), temperature, top_k)
        return self.decode(codes, size)

    @torch.no_grad()
    def inpaint(
        self, image: Tensor, mask: Tensor, num_images: int, temperature: PositiveFloat = 1.0,
        top_k: PositiveInt | None = None, dilation: NonNegativeInt | None = None, candidates: PositiveInt = 1,
    ) -> Tensor:  # fmt: skip
        """Draws the codes in the hole again; `dilation` in cells widens it, by default to the codes that have seen it. As the
        prior sees no cells below, the likeliest of `candidates` maps is taken. The whole image is synthesized anew."""
        codes = self._codes(image)
        hole = F.adaptive_max_pool2d(mask.float(), codes.shape[-2:])
        reach = self.vq.encoder_reach if dilation is None else dilation
        hole = F.max_pool2d(hole, 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
        total = num_images * candidates
        filled = self.prior_best.sample(total, codes.shape[-2:], temperature, top_k, known=codes, mask=hole)
        best = self.prior_best.log_prob(filled).view(num_images, candidates).argmax(1)
        filled = filled.view(num_images, candidates, *codes.shape[-2:])[torch.arange(num_images), best]
        return self.decode(filled, image.shape[-2:])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Eq. 2-4 and continuity at scale 0, Eq. 6 above: one critic step, one generator step."""
        if self.stage == self.prior_stage:
            return self._prior_step()
        t, hp = self.stage, self.hparams
        g_opt, d_opt = self.current_optimizers()
        reals, sides = (resize(batch[name], self.sizes[t]) for name in ("image", "side"))
        if t == 0:
            outputs, terms = self._vq_outputs(reals, sides)
        else:
            inputs = [self._inputs[name][batch[index]] for name, index in (("image", "index"), ("side", "side_index"))]
            outputs, terms = self.generators[t](torch.cat(inputs)), {}
        fakes, side_fakes = outputs.split([len(reals), len(sides)])

        # Paper: "does not see any image from the side-dataset as real input"; here: their outputs are fakes.
        critic = self.discriminators[t]
        critic_terms = self.critic_step(d_opt, critic, reals, fakes, seen=outputs if hp.critic_on_side else fakes)

        with self.toggled_optimizer(g_opt):
            terms["adversarial"] = wasserstein_g(critic(fakes))
            terms["adversarial_side"] = wasserstein_g(critic(side_fakes))
            terms["reconstruction"] = F.mse_loss(fakes, reals)
            terms["ssim"] = ssim_loss(side_fakes, sides)
            loss = sum(hp.beta * v if name == "commitment" else hp[f"weight_{name}"] * v for name, v in terms.items())
            self.optimize(g_opt, loss, hp.clip_norm)

        # Not in the last epoch: revived codes have to be trained, too.
        if t == 0 and (self.iteration + 1) % hp.revive_every == 0 and self.current_epoch < self.stage_epochs(0) - 1:
            self._reseed(self.vq.quantizer.revive)
        self.log_training({"g_loss": loss, **critic_terms, **terms}, len(reals))

    def _vq_outputs(self, reals: Tensor, sides: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs of scale 0 for training and side images, and the terms of Eq. 3 that act on codes."""
        vq = self.vq
        features = vq.encode(torch.cat([reals, sides]))
        positioned = vq.quantizer.add_coordinates(features)
        entries = vq.quantizer.lookup(vq.quantizer.indices(positioned))
        train = slice(len(reals))
        terms = {
            # Only training images move the code book: it stays a vocabulary of their patches.
            "codebook": F.mse_loss(entries[train], positioned[train].detach()),
            "commitment": F.mse_loss(positioned[train], entries[train].detach()),
            "continuity": continuity_loss(features[train]) + continuity_loss(features[len(reals) :]),
        }
        return vq.decode_entries(positioned + (entries - positioned).detach()), terms

    def _prior_step(self) -> None:
        codes = self._inputs["side"]
        rows = torch.randint(len(codes), (self.hparams.prior_batch_size,)).to(self.device)
        loss = F.cross_entropy(self.prior(codes[rows]), codes[rows])
        self.optimize(self.current_optimizers()[0], loss, clip_norm=1.0)
        self.log_training({"prior_bits": loss / math.log(2)}, len(rows))

    def finished(self, epochs: int) -> bool:
        return super().finished(epochs) or int(self.prior_stale_epochs) >= self.hparams.prior_patience

    def on_train_epoch_end(self) -> None:
        if self.stage == self.prior_stage:
            bits = self.prior.eval().bits_per_code(self._inputs.get("side_heldout", self._inputs["side"]))
            bits = self.mean_over_ranks(bits)  # one value, so that all ranks stop together
            self.prior.train()
            self.prior_stale_epochs += 1
            if bits < self.prior_best_bits:
                self.prior_best.load_state_dict(self.prior.state_dict())
                self.prior_best_bits.fill_(bits)
                self.prior_stale_epochs.zero_()
            self.log_epoch({"prior_heldout_bits": bits})
        super().on_train_epoch_end()

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        images = sets["image"].stack().to(self.device)
        numbers, _ = self.reconstruction_errors(images)
        codes = self._codes(images)
        numbers["codes_used"], numbers["code_perplexity"] = code_usage(codes, self.hparams.num_codes)
        if "side_heldout" in sets and self.samples_ready:
            side, heldout = (self.each(sets[name], self._codes) for name in ("side", "side_heldout"))
            numbers["prior_bits_per_code"] = float(self.prior_best.bits_per_code(heldout))
            numbers["order0_bits_per_code"] = order0_bits(side, heldout, self.hparams.num_codes)
            numbers["uniform_bits_per_code"] = math.log2(self.hparams.num_codes)
        return numbers

    @torch.no_grad()
    def baselines(self, num_images: int) -> dict[str, Tensor]:
        codes = randint(0, self.hparams.num_codes, (num_images, *self.sizes[0]))
        return {"random_codes": self.decode(codes.to(self.device))}
