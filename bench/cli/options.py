"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_SUITE = "quick"
INTERRUPTED = 130  # what a shell reports after Ctrl-C
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
