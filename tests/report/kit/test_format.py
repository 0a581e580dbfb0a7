from __future__ import annotations

import pytest

from ropewalk.report.kit.format import rounded, signed


@pytest.mark.parametrize(
    ("value", "digits", "plain", "with_sign"),
    [
        (-0.0004, 3, "0.000", "+0.000"),
        (-0.0006, 3, "-0.001", "-0.001"),
        (0.0004, 3, "0.000", "+0.000"),
        (-0.0, 1, "0.0", "+0.0"),
        (12.345, 1, "12.3", "+12.3"),
        (float("-inf"), 3, "-inf", "-inf"),
        (float("nan"), 3, "nan", "+nan"),
    ],
)
def test_what_rounds_to_zero_has_no_minus(value: float, digits: int, plain: str, with_sign: str) -> None:
    assert rounded(value, digits) == plain and signed(value, digits) == with_sign
