"""Are samples copies of training images?"""

import torch
from torch import Tensor
from torchmetrics import Metric

from core.errors import UserError
from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import refuse, too_few

HIGHEST = 100.0  # dB, stands for equal images: one level in one value of a 256 x 256 image is 101 dB


def nearest_psnr(fakes: Tensor, reals: Tensor, flip: bool = True, chunk: int = 64) -> Tensor:
    """PSNR in dB [n] of each sample to the training image nearest to it, bytes [n, 3, H, W] and [m, 3, H, W].

    With `flip` mirrored training images count too. Float64; equal images give 100. ValueError if the sizes differ, TypeError
    for other than bytes.
    """
    check_bytes(fakes)
    check_bytes(reals)
    if fakes.shape[1:] != reals.shape[1:]:
        raise UserError(f"samples are {tuple(fakes.shape[1:])} and training images {tuple(reals.shape[1:])}")
    reals = torch.cat([reals, reals.flip(-1)]) if flip else reals
    reals = reals.flatten(1).float() / 255
    errors = [exact_distances(part.flatten(1).float() / 255, reals).amin(1).square() for part in fakes.split(chunk)]
    mean_square = torch.cat(errors).cpu().double() / reals.shape[1]
    return (-10 * mean_square.log10()).clamp(max=HIGHEST)


def exact_distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances of rows, without the shortcut through products, which loses the small ones that matter here."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


class NearestPSNR(Metric):
    """Highest and mean `nearest_psnr` of all samples to the training images `reals`, bytes [m, 3, H, W], over all
    ranks.

    A highest value above about 30 dB means that a sample repeats a training image. `compute` raises ValueError without samples.
    """

    full_state_update = False
    fewest = 1

    def __init__(self, reals: Tensor, flip: bool = True) -> None:
        super().__init__()
        self.training_images, self.flip = reals, flip
        self.add_state("highest", default=torch.tensor(-torch.inf, device=reals.device), dist_reduce_fx="max")
        self.add_state("total", default=torch.tensor(0.0, device=reals.device), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0, device=reals.device), dist_reduce_fx="sum")

    def update(self, fakes: Tensor) -> None:
        """Adds bytes [N, 3, H, W], N may be 0."""
        if len(fakes) == 0:
            return
        values = nearest_psnr(fakes, self.training_images, self.flip).float().to(self.total.device)
        self.highest = torch.maximum(self.highest, values.max())
        self.total += values.sum()
        self.count += len(values)

    def compute(self) -> dict[str, Tensor]:
        refuse(self, too_few(int(self.count), self.fewest))
        return {"nearest_psnr_max": self.highest, "nearest_psnr_mean": self.total / self.count}
