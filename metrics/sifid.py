"""Single-image Fréchet distance (Shaham et al., "SinGAN: Learning a Generative Model from a Single Natural Image", 2019)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.errors import UserError
from metrics.feature_metric import SampleSetMetric
from metrics.frechet import frechet_distance


def single_image_frechet(real_maps: Tensor, fake_maps: Tensor) -> Tensor:
    """Fréchet distance of each fake image's feature map [n, C, h, w] to that of the one real image [1, C, h', w']: float64 [n],
    on the CPU. Each position is one observation of C features, covariances divide by positions - 1."""
    if len(real_maps) != 1 or real_maps.shape[1] != fake_maps.shape[1]:
        shapes = f"{tuple(real_maps.shape)} and {tuple(fake_maps.shape)}"
        raise UserError(f"one real map and fake maps of as many channels are compared, got {shapes}")
    reals, *fakes = (maps.flatten(1).T.cpu().double() for maps in (real_maps[0], *fake_maps))
    return torch.tensor([frechet_distance(reals, rows).item() for rows in fakes], dtype=torch.float64)


class SingleImageFrechet(SampleSetMetric):
    """`single_image_frechet` to the training image, uint8 [1, 3, H, W], for every layer of `maps`, a `Backbone.maps`: the
    mean over the samples, and the median, since one blurred sample can move the mean."""

    value_names = ("", "_median")
    max_reference = 1

    def __init__(self, reals: Tensor, maps: Callable[[Tensor], Mapping[str, Tensor]]) -> None:
        super().__init__(reals)
        self.maps, self.real_maps = maps, dict(maps(reals))

    def measure(self, samples: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, layers]."""
        table = torch.zeros(len(samples), len(self.real_maps))
        for row, image in zip(table, samples.split(1), strict=False):  # one at a time: the maps of a large image are large
            maps = self.maps(image)
            row.copy_(torch.cat([single_image_frechet(real, maps[key]) for key, real in self.real_maps.items()]))
        return table

    def mean(self, fakes: Tensor) -> dict[str, float]:
        """Mean over these images by key, on this rank alone."""
        return dict(zip(self.real_maps, self.measure(fakes).double().mean(0).tolist(), strict=True))

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        self.columns = dict(zip(self.real_maps, fakes.double().T, strict=True))
        medians = {f"{key}_median": column.quantile(0.5) for key, column in self.columns.items()}
        return dict(zip(self.real_maps, fakes.double().mean(0), strict=True)) | medians

    def remarks(self, keys: Sequence[str]) -> list[str]:
        missing = [key for key in keys if key not in self.real_maps]
        lines = [f"no {key}: on images of this size its layer has fewer than two positions" for key in missing]
        for key, real in self.real_maps.items():
            channels, height, width = real.shape[1:]
            singular = "; the covariances are singular" if height * width <= channels else ""
            lines.append(f"{key} is over {height}×{width} positions of {channels} features, images not resized{singular}")
        return lines
