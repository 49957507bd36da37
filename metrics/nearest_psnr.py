"""PSNR of samples to the training images nearest to them: are they copies?"""

import torch
from torch import Tensor

from core.errors import UserError
from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import SampleSetMetric

MAX_PSNR = 100.0  # dB, stands for equal images: one level in one value of a 256 x 256 image is 101 dB


def nearest_psnr(fakes: Tensor, reals: Tensor, flip: bool = True, chunk: int = 64) -> Tensor:
    """PSNR in dB [n] of each sample to the training image nearest to it, float64, 100 for equal ones. uint8 [n, 3, H, W] and
    [m, 3, H, W], of which floats of `chunk` are in memory; with `flip` mirrored training images count too."""
    check_bytes(fakes)
    check_bytes(reals)
    if fakes.shape[1:] != reals.shape[1:]:
        raise UserError(f"shapes differ: samples {tuple(fakes.shape[1:])}, training images {tuple(reals.shape[1:])}")
    smallest = []
    for part in fakes.split(chunk):
        rows = _unit_rows(part)
        sources = (views for some in reals.split(chunk) for views in ([some, some.flip(-1)] if flip else [some]))
        smallest.append(torch.stack([exact_distances(rows, _unit_rows(some)).amin(1) for some in sources]).amin(0))
    mean_square = torch.cat(smallest).square().cpu().double() / fakes.shape[1:].numel()
    return (-10 * mean_square.log10()).clamp(max=MAX_PSNR)


def _unit_rows(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 255


def exact_distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances of rows, without the shortcut through products, which loses the small ones that matter here."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


class NearestPSNR(SampleSetMetric):
    """Highest and mean `nearest_psnr`; above about 30 dB a sample repeats a training image."""

    value_names = ("nearest_psnr_max", "nearest_psnr_mean")

    def measure(self, samples: Tensor) -> Tensor:
        return nearest_psnr(samples, self.reals).float()

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        self.columns = {"nearest_psnr_mean": fakes.double()}
        return {"nearest_psnr_max": fakes.double().max(), "nearest_psnr_mean": fakes.double().mean()}
