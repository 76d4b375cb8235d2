"""The one exception that users see: a clear line that names the fix, and near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake the user can mend; the command line prints it and exits with code 2."""


class Unsupported(BenchError):
    """A method that cannot run on this model, and why, in one line; recorded, not retried."""


def check_known(what: str, name: str, choices: Iterable[str]) -> None:
    """Raise a BenchError that begins with `what` and names the near misses, if a name is unknown.

    Args:
        what: such as "unknown method" or "pitome has no variant".
        name: what the user typed.
        choices: the names that there are.
    """
    names = list(choices)
    if name not in names:
        raise BenchError(f"{what} '{name}'{near_miss(name, names)}")


def shown(text: object, longest: int = 80) -> str:
    """Return a text as a message shows it: printable, the middle of a long one left out."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[1 - longest // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def near_miss(name: str, choices: Iterable[str]) -> str:
    """The tail of an error message: what the user may have meant, or all there is."""
    names = list(choices)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return " — did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return " — known: " + ", ".join(names)
