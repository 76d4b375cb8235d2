"""Bring the committed reports into the site: the one page of each, and the start page's figure.

The Markdown links to `../reports/`, where a reader of the repository has them; in the site the same
links lead to `reports/`, and a report's Markdown to its `index.html`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("reports/*/index.html", "reports/quick/figures/accuracy_vs_gmacs.png")
LINK = re.compile(r"\]\(\.\./((?:\.\./)*reports/[^)]*?)(?:report\.md)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the reports' pages to those of docs/."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links at the reports' place in the site."""

    def moved(match: re.Match[str]) -> str:
        target = match[1]
        return f"]({target}index.html)" if target.endswith("/") else f"]({target})"

    return LINK.sub(moved, markdown)
