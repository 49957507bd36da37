import pytest

from modules.ops.scales import check_scale, proportional_size, scale_sizes


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((250, 250), [(s, s) for s in (25, 32, 40, 50, 63, 80, 100, 126, 158, 199, 250)]),
        # SinGAN's published sizes; the first is 26 there by a rounding error that is corrected here.
        (
            (188, 250),
            [(25, 34), (32, 42), (40, 53), (49, 66), (62, 82), (77, 102), (96, 128), (121, 160), (151, 200), (188, 250)],
        ),
    ],
)
def test_sizes_follow_singans_rule(image_size, expected):
    assert scale_sizes(image_size, min_size=25) == expected


def test_finest_scale_is_the_image_and_coarsest_has_the_minimum_side():
    for image_size in [(72, 96), (96, 72), (48, 64), (65, 131), (256, 256)]:
        sizes = scale_sizes(image_size, min_size=24, scale_factor=0.57)
        assert sizes[-1] == image_size and min(sizes[0]) == 24 and sizes == sorted(sizes)


def test_impossible_sizes_say_what_to_change():
    with pytest.raises(ValueError, match=r"image_size \[20, 64\].*min_size 25"):
        scale_sizes((20, 64), min_size=25)
    with pytest.raises(ValueError, match="scale_factor is 0.999, which makes 1388 scales; the maximum is 1000"):
        scale_sizes((100, 100), min_size=25, scale_factor=0.999)


def test_proportional_size():
    assert proportional_size((72, 192), (72, 96), (24, 32)) == (24, 64)
    assert proportional_size((1, 1), (72, 96), (24, 32)) == (1, 1)


def test_existing_scales_pass():
    check_scale(3, scale=0, start_scale=2)
    check_scale(3, lowest=1, scale=1)


@pytest.mark.parametrize(("lowest", "value"), [(0, -1), (0, 3), (1, 0), (1, 3)])
def test_a_missing_scale_is_reported_with_the_existing_ones(lowest, value):
    with pytest.raises(ValueError) as caught:
        check_scale(3, lowest, scale=2, start_scale=value)
    ends = rf"start_scale is {value}; allowed are {lowest} (coarsest) to 2 (finest)"
    assert str(caught.value) == ends + ("; scale 0 makes its image from noise alone" if lowest else "")
