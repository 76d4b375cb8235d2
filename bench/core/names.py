"""What a name of a model, a task, a machine or a suite can be; one place checks it."""

from __future__ import annotations

import re

from bench.core.errors import BenchError

LONGEST = 1000  # characters of a name, which may be a path
LONGEST_FOLDER = 100  # of one that a folder is named after
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # the last are halves of pairs


def check_name(what: str, name: str) -> None:
    """Raise BenchError where `name` names nothing, or nothing that a file could hold."""
    if not name.strip():
        raise BenchError(f"{what} '{name}' is empty: give a name")
    if len(name) > LONGEST:
        raise BenchError(f"{what} '{name}' is longer than {LONGEST} characters")
    if _UNPRINTABLE.search(name):
        raise BenchError(f"{what} '{name}' has characters that cannot be printed: leave them out")


def check_folder_name(what: str, name: str) -> None:
    """Raise BenchError where no folder can be called `name`."""
    check_name(what, name)
    if len(name) > LONGEST_FOLDER or "/" in name or not re.search("[A-Za-z0-9]", name):
        raise BenchError(
            f"{what} '{name}' cannot be a folder's: letters or digits, no slash, at most "
            f"{LONGEST_FOLDER} characters"
        )
