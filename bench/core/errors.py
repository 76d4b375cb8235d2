"""The one exception that users see: a clear line that names the fix, and near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake the user can mend; the command line prints it and exits with code 2."""


class Unsupported(BenchError):
    """A method that cannot run on this model, said in one line; recorded, not retried."""


def near_miss(name: str, choices: Iterable[str]) -> str:
    """The tail of an error message: what the user may have meant, or all there is."""
    names = list(choices)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return " — did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return " — known: " + ", ".join(names)
