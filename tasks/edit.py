"""Makes a rough edit (parts moved, copied, painted over) plausible."""

from dataclasses import dataclass

from core.types import NonNegativeFloat, PathStr
from modules.base import GenerativeModule
from modules.capabilities import Edits, Injects
from tasks.inputs import blend, blending_mask, mask_image, read_masked
from tasks.task import Function, Images, ImageTask


@dataclass(kw_only=True)
class Edit(ImageTask):
    """Renders the edited region anew: `00_input`, `01_mask` (softened), `02_unmasked` (all rendered anew, or edited by the
    method), and `03_edited`, which equals the input away from the mask.

    Args:
        image: file that already contains the edit; any size and mode.
        mask: file, white = the edited region; the image's aspect.
        dilation: radius of the disk that dilates the mask, in pixels at a longer side of 250; scaled with the image.
        blur: sigma of the Gaussian that then softens the mask, same unit. Both as in SinGAN (Rott Shaham et al. 2019).
    """

    mask: PathStr
    dilation: NonNegativeFloat = 20.0
    blur: NonNegativeFloat = 5.0

    @classmethod
    def capability_of(cls, method: type) -> type:
        return Edits if issubclass(method, Edits) else Injects

    def render(self, module: GenerativeModule, function: Function) -> Images:
        image, mask = read_masked(self.image, self.mask, module, self.size)
        result = function(image, mask) if isinstance(module, Edits) else function(image)
        soft = blending_mask(mask, self.dilation, self.blur)
        yield "00_input", image[0]
        yield "01_mask", mask_image(soft)
        yield "02_unmasked", result[0]
        yield "03_edited", blend(soft, result, image)[0]
