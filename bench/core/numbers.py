"""Numbers that a user writes as text: one place reads them, within bounds."""

from __future__ import annotations

import math

from bench.core.errors import BenchError

LARGEST = 2**31 - 1  # of whole numbers, whatever they count


def whole(text: str, least: int = 0, most: int = LARGEST) -> int:
    """Return the whole number that `text` stands for.

    Raises:
        BenchError: it stands for none, or for one that is not from `least` to `most`.
    """
    try:
        number = int(text)
    except ValueError:  # of thousands of digits, too
        number = least - 1
    if not least <= number <= most:
        raise BenchError(f"'{text}' is no whole number from {least} to {most}")
    return number


def share(text: str, unit: int = 1) -> float:
    """Return the number above 0 and at most `unit` that `text` stands for; raises BenchError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= unit:
        raise BenchError(f"'{text}' is no number above 0 and at most {unit}")
    return number


def by_tower(text: str) -> dict[str, str]:
    """Return the text of each tower in `vision=16,text=6`.

    Raises:
        BenchError: a part is not TOWER=VALUE, or a tower is there twice.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    towers = [tower.strip() for tower, _, _ in pairs]
    complete = all(towers) and all(equals for _, equals, _ in pairs)
    if not complete or len(set(towers)) < len(towers):
        raise BenchError(f"'{text}': give TOWER=VALUE, each tower once")
    return {tower: value for tower, (_, _, value) in zip(towers, pairs, strict=True)}
