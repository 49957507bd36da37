"""Resampling against scipy, which knows nothing of convolutions of torch."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, upfirdn

from modules.ops.fir import filter_images, upsample2

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8


def by_scipy(image: np.ndarray, taps: np.ndarray, up: int) -> np.ndarray:
    """Zeros between the pixels, then the filter in both directions, the whole result."""
    return upfirdn(taps, upfirdn(taps, image, up=up, axis=0), up=up, axis=1)


def test_filter_with_padding_is_a_part_of_the_full_convolution():
    images = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    for padding, size in ((1, (5, 6)), (2, (7, 8))):
        filtered = filter_images(images, padding)
        assert filtered.shape[2:] == size
        begin = 3 - padding
        for n in range(2):
            for c in range(3):
                full = convolve2d(images[n, c].numpy(), np.outer(TAPS, TAPS))
                assert np.allclose(filtered[n, c].numpy(), full[begin : begin + size[0], begin : begin + size[1]])


def test_stride_keeps_every_second_value():
    images = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    assert torch.allclose(filter_images(images, 1, stride=2), filter_images(images, 1)[:, :, ::2, ::2])


def test_doubling_inserts_zeros_pads_two_and_one_and_filters_with_gain_4():
    image = np.random.default_rng(0).normal(size=(5, 4))
    # Two zeros before: the full result from its second value on; upfirdn ends at the last pixel, one value short.
    full = np.pad(by_scipy(image, 2 * TAPS, up=2), 1)[2:, 2:][:10, :8]
    doubled = upsample2(torch.tensor(image)[None, None])[0, 0].numpy()
    assert doubled.shape == (10, 8) and np.allclose(doubled, full)


def test_a_constant_image_stays_constant_inside():
    doubled = upsample2(torch.full((1, 3, 8, 8), 0.7))
    assert doubled.shape == (1, 3, 16, 16)
    assert doubled[..., 1:-1, 1:-1].numpy() == pytest.approx(0.7)


def test_gradients_of_gradients():
    images = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: filter_images(x.sin(), 2, 2), images)
    assert torch.autograd.gradgradcheck(lambda x: upsample2(x.sin()), images)
