"""Checks of numbers that a user gives."""

from core.errors import UserError


def check_scale(num_scales: int, lowest: int = 0, **values: int) -> None:
    """ValueError for the first named value that is no scale from `lowest` on; a `lowest` of 1 is for what takes an image."""
    for name, value in values.items():
        if not lowest <= value < num_scales:
            reason = "; scale 0 makes its image from noise alone" if lowest else ""
            raise UserError(f"{name} is {value}; allowed are {lowest} (coarsest) to {num_scales - 1} (finest){reason}")
