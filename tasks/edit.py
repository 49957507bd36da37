"""A rough edit (parts moved, copied, painted over) made plausible."""

from collections.abc import Iterator

from torch import Tensor

from modules.base import GenerativeModule, sampling_mode
from tasks.inputs import accepted, as_picture, blend, blending_mask, read_masked, require


class Edit:
    """The edited region re-made: `00_input`, `01_mask` (as used), `02_unmasked` (all re-made), `03_edited`.

    `03_edited` is (1 - m) · input + m · re-made with the softened mask m, so that it is the input itself away from the
    edit; with an empty mask everywhere (and a warning).

    Args:
        image: file with the edit already made; any size and mode.
        mask: file, white = the edited region; the image's aspect.
        scale: where the image enters the model, 0 = coarsest; finer scales keep more of the edit. None: the coarsest one
            that the method takes an image at.
        finetune: methods that can learn on from the edited image (ConSinGAN in `module.mode=editing`): iterations. None: not.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
        dilation: radius of the disk that grows the mask, in pixels at a longer side of 250; scaled with the image.
        blur: sigma of the Gaussian that then softens the mask, same unit. Both as in SinGAN (Rott Shaham et al. 2019).
        seed: for methods that draw noise.
    """

    def __init__(
        self,
        image: str,
        mask: str,
        scale: int | None = None,
        finetune: int | None = None,
        size: list[int] | None = None,
        dilation: float = 20.0,
        blur: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.image, self.mask, self.scale, self.size = image, mask, scale, size
        self.finetune, self.dilation, self.blur, self.seed = finetune, dilation, blur, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        inject = require(module, "inject", "edit")
        options = accepted(inject, "edit", scale=self.scale, finetune=self.finetune)
        image, mask = read_masked(self.image, self.mask, module, self.size)
        with sampling_mode(module, self.seed):
            result = inject(image.to(module.device), **options).cpu()
        soft = blending_mask(mask, self.dilation, self.blur)
        yield "00_input", image[0]
        yield "01_mask", as_picture(soft)
        yield "02_unmasked", result[0]
        yield "03_edited", blend(soft, result, image)[0]
