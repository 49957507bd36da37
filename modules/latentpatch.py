"""LatentPatch (Samuth, Rabin, Tschumperlé & Jurie 2023): new images from patches of the codes of others, without training."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import ImageSize, NonNegativeInt, OpenFraction, PathStr, PositiveInt, Probability
from modules.bank import Bank, BankModule
from modules.ops.attributes import Attributes, index_attributes, select_images
from modules.ops.images import resize
from modules.ops.noise import rand, randint
from modules.ops.scales import check_scale
from modules.patches.latent_patches import (
    LatentSources,
    compose,
    interpolate,
    latent_sizes,
    plan_windows,
    project_codebook,
    verbatim_scores,
)  # fmt: skip
from modules.patches.mosaic import source_picture, surroundings
from modules.tokenizer import OnCodes

COMPOSE_BATCH_SIZE = 64  # whose codes are composed together
SCALES = 5  # of the paper, through which a reference can enter
MEASURED = 16  # samples of the diagnostics
ALMOST_ALL = 0.9  # share of a sample's cells from one source above which it counts as its copy

Preset = Literal["default", "paper", "table1", "reference", "random_1x1", "random_4x4"]


class Settings(NamedTuple):
    """Settings of the synthesis: side and stride of a window in cells, of how many nearest sources one is taken (None: of all),
    number of scales, and whether a random source is the reference."""

    patch: int = 6
    stride: int | None = None
    neighbors: int | None = 3
    scales: int = 1
    reference: bool = False


# Paper: 5 scales everywhere but in table 1 and with references; here: 1 by default. Interpolated queries are smooth, and what
# is near to them is dark and of little contrast: docs/methods/latentpatch.md has numbers.
PRESETS: dict[str, Settings] = {
    "default": Settings(),
    "paper": Settings(scales=SCALES),
    "table1": Settings(neighbors=10),
    "reference": Settings(reference=True),
    "random_1x1": Settings(patch=1, stride=1, neighbors=None),
    "random_4x4": Settings(patch=4, stride=4, neighbors=None),
}


class LatentPatch(OnCodes, BankModule):
    """A frozen autoencoder turns images into maps of codes; `fit` stores the maps, `sample` composes new ones.

    Window by window in raster order, cells are copied from one of the sources whose windows at the same position are nearest
    to what is there already, in the first `rank` principal axes of the sources' latents. The codes are decoded.

    After a call, `provenance` (int64 [N, 3, H, W]: source image, row, column) is the origin of each pixel's cell; -1 where
    the cell is of the given image.

    Args:
        image_size: [height, width] of the autoencoder.
        tokenizer_checkpoint: file of a trained VQGAN, of this project or a public one.
        preset: by name; `paper` has 5 scales, `table1` 10 neighbors, `reference` renders random sources anew,
            `random_1x1` and `random_4x4` are the paper's baselines of random cells and blocks.
        patch, stride, neighbors, scales: in place of the preset's values; null: those, and ceil(patch / 3) for `stride`.
            (Paper: floor(patch / 3 + 1 / 2) printed; here: what its figures show.)
        rank: principal axes in which patches are compared.
        coarsest: size of the coarsest of several scales, in parts of the map of codes; the paper's 10 of 16 cells.
    """

    fixed_size = True
    cost_setting = None
    bank: Bank | None

    def __init__(
        self,
        image_size: ImageSize,
        tokenizer_checkpoint: PathStr = "weights/vqgan_faces64.pt",
        preset: Preset = "default",
        patch: PositiveInt | None = None,
        stride: PositiveInt | None = None,
        neighbors: PositiveInt | None = None,
        scales: PositiveInt | None = None,
        rank: PositiveInt = 16,
        coarsest: OpenFraction = 0.625,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.image_size = tuple(image_size)
        self.bank = None
        self.attributes: Attributes = {}
        self._sources: dict[str | None, tuple[LatentSources, Tensor]] = {}
        self._origin: Tensor | None = None

    # --- settings -----------------------------------------------------------------------------------------------------

    def settings(self, preset: Preset | None = None, **values: int | None) -> Settings:
        """The settings of a preset, by default the module's with its own values, overridden by `values` that are not None."""
        own = {key: self.hparams[key] for key in Settings._fields if key in self.hparams and preset is None}
        given = {key: value for part in (own, values) for key, value in part.items() if value is not None}
        chosen = PRESETS[preset or self.hparams.preset]._replace(**given)
        chosen = chosen._replace(stride=chosen.stride or math.ceil(chosen.patch / 3))
        if chosen.stride > chosen.patch:
            raise UserError(f"stride is {chosen.stride}, larger than patch {chosen.patch}: cells would be left out")
        return chosen

    def _sizes(self, settings: Settings, start: int = 0) -> list[tuple[int, int]]:
        """Sizes of the scales from `start` on. UserError if a window does not fit into the coarsest."""
        sizes = latent_sizes(self.tokenizer.grid, settings.scales, self.hparams.coarsest)[start:]
        if settings.patch > min(sizes[0]):
            height, width = sizes[0]
            raise UserError(f"patch is {settings.patch}, larger than the coarsest scale of {height}×{width} codes")
        return sizes

    # --- fit ----------------------------------------------------------------------------------------------------------

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        images, neighbors = len(sets["image"]), self.settings().neighbors or 1
        if neighbors > images:
            raise UserError(f"module.neighbors is {neighbors}, more than the {images} image(s) to choose from")
        self.attributes = index_attributes(getattr(sets["image"], "attributes", {}), images)

    def check_tokenizer(self) -> None:
        super().check_tokenizer()
        self._sizes(self.settings())

    def bank_rows(self, images: Tensor) -> Tensor:
        """Codes, int16 [n, h, w]."""
        return self._encode(images).to(torch.int16)

    def store(self, images: Dataset | Tensor) -> None:
        self._open_bank(len(images))
        super().store(images)

    def _open_bank(self, images: int) -> None:
        self.bank = Bank(images, self.tokenizer.grid, torch.int16).to(self.device)
        self._sources.clear()

    @property
    def samples_ready(self) -> bool:
        return self.bank is not None and len(self.bank) > 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["attributes"], checkpoint["codes_of"] = self.attributes, self.tokenizer.identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state, prefix = checkpoint["state_dict"], "tokenizer."
        self.tokenizer.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
        expected, actual = checkpoint["codes_of"], self.tokenizer.identity()
        if actual != expected:
            raise UserError(f"the codes are of another autoencoder ({expected[:12]}) than the one in the file ({actual[:12]})")
        self._open_bank(len(state["bank.values"]))
        self.attributes = checkpoint["attributes"]

    # --- images and codes ---------------------------------------------------------------------------------------------

    def _encode(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(resize(images, self.image_size))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] as the autoencoder reconstructs them."""
        return resize(self.tokenizer.decode(self._encode(images)), tuple(images.shape[-2:]))

    autoencode = reconstruct

    # --- sources ------------------------------------------------------------------------------------------------------

    def sources(self, where: str | None = None) -> tuple[LatentSources, Tensor]:
        """The stored maps that fulfill a condition, and their rows [B] in the bank. UserError if there are none."""
        if not self.samples_ready:
            raise UserError("this LatentPatch holds no images yet; fit stores them")
        if where not in self._sources:
            rows = select_images(where, self.attributes, len(self.bank)).to(self.device)
            codes = self.bank.rows if len(rows) == len(self.bank) else self.bank.rows[rows]
            book = project_codebook(codes, self.tokenizer.codebook, self.hparams.rank)
            self._sources[where] = LatentSources(codes, book), rows
        return self._sources[where]

    def _checked_sources(self, where: str | None, settings: Settings) -> tuple[LatentSources, Tensor]:
        sources, rows = self.sources(where)
        if (settings.neighbors or 1) > len(sources):
            images = f"{len(sources)} images" + f" with {where}" * (where is not None)
            raise UserError(f"neighbors is {settings.neighbors}, more than the {images} to choose from")
        if where is not None and settings.neighbors is not None and len(sources) < 4 * settings.neighbors:
            rank_zero_warn(f"where={where} leaves {len(sources)} images, few for {settings.neighbors} neighbors: expect copies")
        return sources, rows

    # --- synthesis ----------------------------------------------------------------------------------------------------

    def _compose(
        self, settings: Settings, where: str | None, num_images: int, guess: Tensor | None = None, known: Tensor | None = None,
        masked: bool | None = None, start: int = 0, rho: int = 0,
    ) -> Tensor:  # fmt: skip
        """Codes [N, h, w], and sets the provenance.

        `guess` are codes [N, h, w] that enter at scale `start`. Cells that are `known` (bool [h, w]) stay as in it. Windows
        compare only what is known before them if `masked`, by default without a guess.
        """
        sources, rows = self._checked_sources(where, settings)
        sizes, masked = self._sizes(settings, start), guess is None if masked is None else masked
        plans = [plan_windows(size, settings.patch, settings.stride, known, masked and not i) for i, size in enumerate(sizes)]
        draws = [rand(num_images, len(plan), 2, device=self.device) for plan in plans]
        pieces, origins = torch.arange(num_images, device=self.device).split(COMPOSE_BATCH_SIZE), []
        total = len(pieces) * sum(map(len, plans))
        with Tqdm(total=total, desc="LatentPatch", unit="window", leave=False, delay=3, disable=None) as bar:
            for piece in pieces:
                features = sources.book.new_zeros(len(piece), math.prod(sizes[0]), sources.book.shape[1])
                if guess is not None:
                    features = interpolate(sources.book[guess[piece].flatten(1)], sources.size, sizes[0])
                for i, (size, plan) in enumerate(zip(sizes, plans, strict=True)):
                    features = interpolate(features, sizes[max(i - 1, 0)], size)
                    neighbors = settings.neighbors or len(sources)
                    origin = compose(sources.at(size), features, plan, draws[i][piece], neighbors, rho, bar.update)
                origins.append(origin)
        origin = torch.cat(origins)
        codes = sources.codes_of(origin)
        if guess is not None:
            codes = torch.where(origin < 0, guess.flatten(1), codes)
        cells = origin.shape[1]
        self._origin = torch.where(origin < 0, -1, rows[origin.clamp(min=0) // cells] * cells + origin % cells)
        return codes.unflatten(1, sources.size)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        size: tuple[int, int] | None = None,
        preset: Preset | None = None,
        where: str | None = None,
        patch: PositiveInt | None = None,
        stride: PositiveInt | None = None,
        neighbors: PositiveInt | None = None,
        scales: PositiveInt | None = None,
        rho: NonNegativeInt = 0,
    ) -> Tensor:
        """New images. `where` selects sources, see `select_images`; None stands for the module's own value. For images that are
        not aligned, source windows may lie up to `rho` codes beside the window."""
        self.check_size(size)
        values = {"patch": patch, "stride": stride, "neighbors": neighbors, "scales": scales}
        return self.tokenizer.decode(self.sample_codes(num_images, preset, where, rho, **values))

    def sample_codes(
        self, num_images: int, preset: Preset | None = None, where: str | None = None, rho: int = 0, **values: int | None
    ) -> Tensor:
        """Codes [N, h, w] of new images; see `sample`."""
        settings, guess = self.settings(preset, **values), None
        if settings.reference:
            sources = self.sources(where)[0]
            chosen = randint(0, len(sources), (num_images,), self.device)
            guess = sources.codes[chosen].long().unflatten(1, sources.size)
        return self._compose(settings, where, num_images, guess, rho=rho)

    @torch.no_grad()
    def inject(
        self,
        images: Tensor,
        scale: int | None = None,
        strength: Probability = 1.0,
        where: str | None = None,
        patch: PositiveInt | None = None,
        neighbors: PositiveInt | None = None,
        rho: NonNegativeInt = 0,
    ) -> Tensor:
        """The images [N, 3, H, W] in patches of the sources. They enter at one of 5 scales: `scale`, or from the finest for
        a strength of 1 (the paper) to the coarsest for 0, which keeps the least of them."""
        settings = self.settings(patch=patch, neighbors=neighbors, scales=SCALES)
        scale = round(strength * (SCALES - 1)) if scale is None else scale
        check_scale(SCALES, scale=scale)
        codes = self._compose(settings, where, len(images), self._encode(images), start=scale, rho=rho)
        return resize(self.tokenizer.decode(codes), tuple(images.shape[-2:]))

    @torch.no_grad()
    def edit(
        self,
        image: Tensor,
        mask: Tensor,
        donor: Tensor | None = None,
        heal: bool = False,
        where: str | None = None,
        patch: PositiveInt | None = None,
        neighbors: PositiveInt | None = None,
    ) -> Tensor:
        """The image [1, 3, H, W] with the codes of a `donor` in the mask; without one, with those of near sources.

        A code is in the mask if more than half of its pixels are. `heal` replaces the codes around the mask by those of sources
        that fit to both sides.
        """
        codes, inside = self._encode(image), F.adaptive_avg_pool2d(mask, self.tokenizer.grid)[0, 0] > 0.5
        settings = self.settings(patch=patch, neighbors=neighbors, scales=1)
        if donor is None:
            codes = self._compose(settings, where, 1, codes, ~inside)
        else:
            codes = torch.where(inside, self._encode(donor), codes)
            self._origin = torch.full((1, inside.numel()), -1, device=self.device)
        if heal:
            around = F.max_pool2d(inside[None].float(), 3, 1, 1)[0] > inside
            before, codes = self._origin, self._compose(settings, where, 1, codes, ~around)
            self._origin = torch.where(self._origin < 0, before, self._origin)
        return resize(self.tokenizer.decode(codes), tuple(image.shape[-2:]))

    @torch.no_grad()
    def inpaint(
        self,
        image: Tensor,
        mask: Tensor,
        num_images: int,
        where: str | None = None,
        patch: PositiveInt | None = None,
        neighbors: PositiveInt | None = None,
    ) -> Tensor:
        """`num_images` ways to fill the hole of an image [1, 3, H, W]: codes of which a pixel or a neighbor is in the hole are
        composed from sources that fit to the others."""
        hole = F.max_pool2d(F.adaptive_max_pool2d(mask.float(), self.tokenizer.grid), 3, 1, 1)[0, 0] > 0
        hole &= bool(mask.any())
        codes = self._encode(surroundings(image, mask.to(image)))  # the colors in the hole would reach its surroundings
        settings = self.settings(patch=patch, neighbors=neighbors, scales=1)
        codes = self._compose(settings, where, num_images, codes.expand(num_images, -1, -1), ~hole, masked=True)
        return resize(self.tokenizer.decode(codes), tuple(image.shape[-2:]))

    # --- provenance ---------------------------------------------------------------------------------------------------

    def _last_origin(self) -> Tensor:
        if self._origin is None:
            raise UserError("provenance: no image has been generated yet")
        return self._origin

    def provenance(self) -> Tensor:
        """Source image, row and column [N, 3, H, W] of each pixel of the last images; -1 where it is of the given image."""
        (height, width), f = self.tokenizer.grid, self.tokenizer.downsampling
        origin = self._last_origin().unflatten(1, (height, width)).repeat_interleave(f, 1).repeat_interleave(f, 2)
        cells, rows, columns = height * width, *(torch.arange(side, device=origin.device) for side in self.image_size)
        row = origin % cells // width * f + rows.unsqueeze(1) % f
        column = origin % width * f + columns % f
        return torch.stack([origin // cells, row, column], 1).where((origin >= 0).unsqueeze(1), -1)

    def provenance_picture(self) -> Tensor:
        return source_picture(self.provenance(), [self.image_size] * len(self.bank))

    def source_shares(self) -> Tensor:
        """Share [n] of the composed codes of the last images that each stored image gave; sums to 1."""
        origin = self._last_origin()
        images = origin[origin >= 0] // origin.shape[1]
        return torch.bincount(images, minlength=len(self.bank)) / max(1, len(images))

    @torch.no_grad()
    def provenance_statistics(self, codes: Tensor) -> dict[str, float]:
        """Of the last images, whose codes are [N, h, w]: mean number of sources, mean share of the largest, and the largest
        share of cells equal to one source's at the same place (verbatim): median, maximum, share of images above 0.9."""
        images = self._last_origin() // self._last_origin().shape[1]
        counts = [row.unique(return_counts=True)[1] for row in images]
        verbatim = verbatim_scores(codes, self.sources()[0])
        return {
            "sources_per_image": sum(map(len, counts)) / len(counts),
            "largest_source_share": sum(float(c.max() / c.sum()) for c in counts) / len(counts),
            "verbatim_median": float(verbatim.median()),
            "verbatim_max": float(verbatim.max()),
            "verbatim_copies": float((verbatim > ALMOST_ALL).double().mean()),
        }

    # --- diagnostics --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """Provenance of 16 samples."""
        return self.provenance_statistics(self.sample_codes(MEASURED))

    @torch.no_grad()
    def baselines(self, num_images: int) -> dict[str, Tensor]:
        """Reconstructions of random sources, the best that codes can reach; random cells and blocks."""
        codes = self.bank.rows[torch.randint(0, len(self.bank), (num_images,)).to(self.device)].long()
        random = {name: self.sample(num_images, preset=name) for name in ("random_1x1", "random_4x4")}
        return {"reconstructions": self.tokenizer.decode(codes), **random}
