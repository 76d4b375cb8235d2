"""The templates that a report is written from."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

TRIMMED = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}


@functools.cache
def environment(**settings: Any) -> Environment:
    """Return the templates of reports, compiled once; a name that they lack is an error."""
    loader = PackageLoader("bench.assets", "templates/report")
    return Environment(loader=loader, undefined=StrictUndefined, **settings)
