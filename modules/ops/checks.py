"""Checks of numbers that a user gives."""


def at_least(minimum: float, **values: float | None) -> None:
    """ValueError for the first named value below `minimum`; None passes."""
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name} is {value}; it has to be at least {minimum}")
