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

# What is asked of a method, by the commands that need no weights.
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="A method's name (list methods); several if you like."),
]
Removed = Annotated[
    str | None, typer.Option("--r", help="Tokens removed a layer, for methods with such an r.")
]
KeepRate = Annotated[
    str | None, typer.Option(help="Share of tokens kept, for methods with a keep rate.")
]
Layers = Annotated[
    str | None, typer.Option(help="Blocks to reduce at, from 0: 2, or 3,6,9, or language=2/8.")
]
Param = Annotated[
    list[str] | None, typer.Option(help="A parameter of a method's own: dominant=54.")
]
Words = Annotated[
    int | None,
    typer.Option(min=0, max=1_000_000, help="Tokens of the prompt beside the image's [36]."),
]
Frames = Annotated[
    int, typer.Option(min=0, max=10_000, help="Show a video of so many frames, not an image [0].")
]
Shaped = Annotated[str, typer.Argument(help="A model's name (list models); no weights needed.")]
