"""The one exception that users see: a clear line that names the fix, and near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MOST_NAMES, FEW_NAMES = 10, 5  # that a message tells; where there are more, a few of them
LONGEST_WORD, LONGEST_LINE = 100, 280  # characters of a message on a terminal


class BenchError(Exception):
    """A mistake the user can mend; the command line prints it and exits with code 2."""


class Unsupported(BenchError):
    """A method that cannot run on this model, and why, in one line; recorded, not retried."""


def reason_of(error: Any) -> str:
    """The first mistake that a pydantic ValidationError names, in the words of a line."""
    message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def check_known(what: str, name: str, choices: Iterable[str], listed: str = "") -> None:
    """Raise a BenchError that begins with `what` and names the near misses, if a name is unknown.

    Args:
        what: such as "unknown method" or "pitome has no variant".
        name: what the user typed.
        choices: the names that there are.
        listed: the command that lists them, if there is one.
    """
    names = list(choices)
    if name not in names:
        raise BenchError(f"{what} '{name}'{near_miss(name, names, listed)}")


def shown(text: object, longest: int = 80) -> str:
    """Return a text as a message shows it: printable, the middle of a long one left out."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[1 - longest // 2 :]}"
    return _visible(text)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def near_miss(name: object, choices: Iterable[str], listed: str = "") -> str:
    """The tail of an error message: what the user may have meant, or a few of what there is.

    Args:
        name: what the user wrote.
        choices: the names that there are.
        listed: the command that lists them, such as "list methods", if there is one.
    """
    names = list(choices)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        return " — did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    if len(names) <= MOST_NAMES:
        return " — known: " + ", ".join(names)
    some = f" — known: {', '.join(names[:FEW_NAMES])} and {len(names) - FEW_NAMES} more"
    return some + (f" (run_bench.py {listed})" if listed else "")


def printable(message: str) -> str:
    """A message as one line of a terminal: control characters escaped, a long one shortened."""
    words = message.split()
    line = " ".join(map(_visible, words))
    if len(line) > LONGEST_LINE:
        line = " ".join(shown(word, LONGEST_WORD) for word in words)
    if len(line) > LONGEST_LINE:  # the mend stands at the end
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 + 3 :]}"
    return line
