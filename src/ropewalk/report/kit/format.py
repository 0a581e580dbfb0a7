"""Numbers as text."""

from __future__ import annotations

# In the place of an interval, where few prompts differ by the same to the last digit.
ALIKE = "[all alike: no interval]"


def rounded(value: float, digits: int = 3) -> str:
    """A number with so many decimals; what rounds to zero has no minus."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def signed(value: float, digits: int = 3) -> str:
    """The same with a plus before what isn't negative."""
    text = rounded(value, digits)
    return text if text.startswith("-") else f"+{text}"
