"""The README is short and says what is true: its code runs, its paths and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT, links, run_python

MOST_LINES = 200


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_read_in_five_minutes(text: str) -> None:
    assert len(text.splitlines()) <= MOST_LINES


def test_python_blocks_run(text: str, tmp_path: Path) -> None:
    trial = (
        "```python\n"
        "with torch.inference_mode(), bench.reduced(model, 'largest', r=8):\n"
        "    n_in, n_out = bench.trace(model, images).tokens['vision'][0]\n"
        "assert (n_in, n_out) == (197, 189)\n"
        "```\n"
    )
    printed = run_python({"README.md": text + trial}, tmp_path)
    assert "(197, 189)" in printed


def test_links_lead_somewhere(text: str) -> None:
    for link in links(text):
        assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"


def test_a_row_of_results_is_what_the_report_says(text: str) -> None:
    """The table is a part of the committed report."""
    table = re.search(r"<!-- results:begin -->.*?\n(\|.*?)\n\n", text, re.DOTALL)
    assert table
    report = (ROOT / "reports" / "quick" / "report.md").read_text(encoding="utf-8")
    settings = 0
    for row in table[1].splitlines()[2:]:
        for cell in row.split("|")[2:-1]:
            number = cell.split()[0]
            assert number == "1" or number in report, f"{number} is not in reports/quick/report.md"
            settings += 1
    assert settings == 40
