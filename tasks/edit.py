"""Makes a rough edit (parts moved, copied, painted over) plausible."""

from collections.abc import Iterator

from torch import Tensor

from core.types import ImageSize, NonNegativeFloat, NonNegativeInt, Options, PathStr, Seed
from modules.base import GenerativeModule
from modules.capabilities import Injects
from tasks.base import Task
from tasks.inputs import blend, blending_mask, mask_image, read_masked


class Edit(Task):
    """Renders the edited region anew: `00_input`, `01_mask` (as used), `02_unmasked` (all rendered anew), `03_edited`.

    `03_edited` is (1 - m) · input + m · `02_unmasked` with the softened mask m, so that it equals the input away from the
    edit; with an empty mask everywhere (and a warning).

    Args:
        image: file that already contains the edit; any size and mode.
        mask: file, white = the edited region; the image's aspect.
        scale: where the image enters the model, 0 = coarsest; finer scales keep more of the edit. None: the coarsest one
            that the method takes an image at.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
        dilation: radius of the disk that dilates the mask, in pixels at a longer side of 250; scaled with the image.
        blur: sigma of the Gaussian that then softens the mask, same unit. Both as in SinGAN (Rott Shaham et al. 2019).
        options: options of the method.
        seed: for methods that draw noise.
    """

    capability = Injects

    def __init__(
        self,
        image: PathStr,
        mask: PathStr,
        scale: NonNegativeInt | None = None,
        size: ImageSize | None = None,
        dilation: NonNegativeFloat = 20.0,
        blur: NonNegativeFloat = 5.0,
        options: Options | None = None,
        seed: Seed = 0,
    ) -> None:
        self.image, self.mask, self.scale, self.size = image, mask, scale, size
        self.dilation, self.blur, self.options, self.seed = dilation, blur, options, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        self.bind(module)  # before files are read
        image, mask = read_masked(self.image, self.mask, module, self.size)
        result = self.inject(module, image)
        soft = blending_mask(mask, self.dilation, self.blur)
        yield "00_input", image[0]
        yield "01_mask", mask_image(soft)
        yield "02_unmasked", result[0]
        yield "03_edited", blend(soft, result, image)[0]
