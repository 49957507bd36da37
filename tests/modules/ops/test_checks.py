import pytest

from modules.ops.checks import at_least


def test_values_at_and_above_the_minimum_and_none_pass():
    at_least(1, width=1, depth=5, radius=None)


@pytest.mark.parametrize("value", [0, -3, float("nan")])
def test_the_first_value_below_is_named(value):
    with pytest.raises(ValueError, match="depth is .*; it has to be at least 1"):
        at_least(1, width=1, depth=value, other=-1)
