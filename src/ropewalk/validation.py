"""Checks of argument values: each raises an ArgumentError that names the argument, its value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ropewalk.errors import ArgumentError


def check_rotary_dim(argument: str, value: Any, minimum: int = 2) -> None:
    """Refuse anything but an even integer from `minimum` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum or value % 2:
        raise ArgumentError(argument, value, f"give an even integer, {minimum} or more")


def check_base(value: Any) -> None:
    """Refuse a base that isn't a finite number over 1."""
    if not is_finite_number(value) or value <= 1:
        raise ArgumentError("base", value, "give a finite number over 1, such as 10000.0")


def check_factor(argument: str, value: Any) -> None:
    """Refuse a scaling factor that isn't a finite number of at least 1."""
    if not is_finite_number(value) or value < 1:
        remedy = "give a finite number of at least 1: target length / original length"
        raise ArgumentError(argument, value, remedy)


def check_positive(argument: str, value: Any) -> None:
    """Refuse anything but a finite number over 0."""
    if not is_finite_number(value) or value <= 0:
        raise ArgumentError(argument, value, "give a finite number over 0")


def check_length(argument: str, value: Any) -> None:
    """Refuse a length that isn't a positive integer (a number of tokens)."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(argument, value, "give a positive integer, a number of tokens")


def check_count(argument: str, value: Any, minimum: int = 1) -> None:
    """Refuse a size or number of things that isn't an integer from `minimum` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ArgumentError(argument, value, f"give an integer, {minimum} or more")


def check_flag(argument: str, value: Any) -> None:
    """Refuse anything but True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(argument, value, "give True or False")


def checked_numbers(argument: str, values: Any, minimum: float, remedy: str) -> tuple[float, ...]:
    """`values` as a tuple of floats, each finite and not under `minimum`."""
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ArgumentError(argument, values, remedy)
    numbers = tuple(values)
    for index, number in enumerate(numbers):
        if not is_finite_number(number) or number < minimum:
            raise ArgumentError(f"{argument}[{index}]", number, remedy)
    if not numbers:
        raise ArgumentError(argument, numbers, remedy)
    return tuple(float(number) for number in numbers)


def is_finite_number(value: Any) -> bool:
    """Whether the value is an int or float (not a bool) and neither infinite nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_whole_field(config: Any, name: str, least: int, most: int | None = None) -> None:
    """Refuse a field of a config that isn't a whole number from `least` to `most`."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(name, value, f"must be a whole number, {limits}")


def check_sequence_length(length: Any) -> None:
    """Refuse a length of sequences in which no token has one before it."""
    if not isinstance(length, int) or isinstance(length, bool) or length < 2:
        raise ArgumentError("length", length, "must be a whole number of tokens, at least 2")


def check_distinct(name: str, values: Sequence[Any], remedy: str) -> None:
    """Refuse a value that is there twice."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ArgumentError(name, value, f"is there twice; {remedy}")
