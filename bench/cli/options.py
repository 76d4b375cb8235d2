"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_SUITE = "quick"
INTERRUPTED = 130  # what a shell reports after Ctrl-C
LONGEST_NAME = 255  # bytes: what file systems take
LONGEST_PATH = 4095


def path(text: str | Path) -> Path:
    """Return the path that an option names.

    Raises:
        typer.BadParameter: no file system has such a path.
    """
    return Path(path_text(str(text)))


def path_text(text: str) -> str:
    """Return a path as it was typed; raises as `path` does."""
    try:
        sizes = [len(part.encode()) for part in text.split("/")]
    except UnicodeEncodeError:
        raise typer.BadParameter("the path is not UTF-8: name another") from None
    if not text.strip():
        raise typer.BadParameter("the path is empty: name one, '.' for the current folder")
    if not text.isprintable():
        raise typer.BadParameter(f"the path {text[:40]!r} has a control character: name another")
    if max(sizes) > LONGEST_NAME or sum(sizes) + len(sizes) > LONGEST_PATH:
        raise typer.BadParameter(f"the path has {len(text):,} characters: name a shorter one")
    return text


Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
