"""What a report shows: each file of `tables/` and `figures/` declares what it makes, and where.

A new table or figure is one new file in one of these folders:

    @makes("table", 65, fold="Shown on a click")
    def my_table(frames: Frames, group: str) -> Table | None: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Maker:
    """A function that makes tables, figures or sections.

    Attributes:
        make: With `overall` it takes the report's data, and figures also the tables that figures
            are drawn for; otherwise the data and the name of a table: one model on one task. A
            "table" maker returns one, several or None, a "figure" maker several plots.
        what: "table", "figure", or "section" (of `bench.report.content`, always overall).
        place: Where it stands: tables and figures alike go by this number, from top to bottom.
        overall: Whether it is about all models and tasks.
        lead: Text before it, as Markdown.
        fold: What a reader clicks on to see it; empty: it is seen at once.
        paper: Whether the paper shows it too.
        absent: What to say where there is none.
        measured: Whether it shows what was measured here, and so what its records do not share.
    """

    make: Callable[..., Any]
    what: str
    place: float
    overall: bool = False
    lead: str = ""
    fold: str = ""
    paper: bool = True
    absent: str = ""
    measured: bool = True


_MAKERS: dict[tuple[str, str], Maker] = {}


def makes(what: str, place: float, **how: Any) -> Callable[[Make], Make]:
    """Declare what a function makes; arguments as the attributes of `Maker`."""

    def declare(make: Make) -> Make:
        _MAKERS[make.__module__, make.__qualname__] = Maker(make, what, place, **how)
        return make

    return declare


def makers(*whats: str, overall: bool = False) -> list[Maker]:
    """Return what was declared, in the order in which a report shows it."""
    chosen = [m for m in _MAKERS.items() if m[1].what in whats and m[1].overall == overall]
    return [maker for _, maker in sorted(chosen, key=lambda item: (item[1].place, item[0]))]
