"""A pasted object adapted to the picture it was pasted into."""

from collections.abc import Iterator

from torch import Tensor

from modules.base import GenerativeModule
from modules.tasks.edit import Edit
from modules.tasks.inputs import as_picture, blend


class Harmonize(Edit):
    """The pasted object re-made in trained colours and textures: `00_input`, `01_mask` (as used), `02_harmonized`.

    As `Edit` with a tighter mask: `image` is the picture with the object pasted in, `mask` is white on the object.
    """

    def __init__(
        self,
        image: str,
        mask: str,
        scale: int = 0,
        size: list[int] | None = None,
        dilation: float = 7.0,
        blur: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(image, mask, scale, size, dilation, blur, seed)

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        image, soft, result = self.remake(module, "harmonize")
        yield "00_input", image[0]
        yield "01_mask", as_picture(soft)
        yield "02_harmonized", blend(soft, result, image)[0]
