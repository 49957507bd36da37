import pytest

from modules.ops.checks import check_scale


def test_scales_that_are_there_pass():
    check_scale(3, scale=0, start_scale=2)
    check_scale(3, lowest=1, scale=1)


@pytest.mark.parametrize(("lowest", "value"), [(0, -1), (0, 3), (1, 0), (1, 3)])
def test_a_scale_that_is_not_there_is_named_with_those_that_are(lowest, value):
    with pytest.raises(ValueError) as caught:
        check_scale(3, lowest, scale=2, start_scale=value)
    ends = rf"start_scale is {value}; allowed are {lowest} (coarsest) to 2 (finest)"
    assert str(caught.value) == ends + ("; scale 0 makes its image from noise alone" if lowest else "")
