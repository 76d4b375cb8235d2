"""A report of hostile records: nothing in them is run, and no file but the report's is touched."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import synthetic, vit, write

from bench.core.errors import BenchError
from bench.records.record import Record
from bench.report import FORMATS, build

SCRIPT = "</script><script>stolen()</script><img src=x onerror=stolen()>"
TEX = r"\input{/etc/passwd}\write18{touch stolen}$x$%"
FORMULA = "=HYPERLINK(1)"


def hostile(record: Record, text: str) -> Record:
    cell = replace(
        record.cell, model=text, task=f"{text}-", method=text, label=f"{text} r=8", profile=text,
        params={text: text, "r": -8},
    )  # fmt: skip
    return replace(
        record,
        cell=cell,
        reason=text,
        accuracy=replace(record.accuracy, reason=text),
        cost=replace(record.cost, notes=[text], tokens={text: [(9, 8)]}),
        provenance=record.provenance
        | {"weights": text, "card": text, "how": text, "weights_sha256": text[-12:]},
        env=record.env | {"machine": text, "cpu": text, "gpu": text},
        command=text,
    )


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of hostile records, in every format, and with nothing else."""
    root, records = tmp_path_factory.mktemp("hostile"), vit(synthetic())
    texts = (
        "../../stolen",
        SCRIPT,
        TEX,
        FORMULA,
        "@SUM(1)",
        "+1+1",
        "-2+3",
        "\t=1",
        "a\r=1",
        "/etc",
    )
    texts += (f"``{SCRIPT}`",)
    made = [hostile(records[1], text) for text in texts]
    failed = [replace(record, status="failed", key=record.key[::-1]) for record in made]
    write([*records[:2], *made, *failed], root / "results")
    (root / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)
        patch.setattr("bench.report.figures.plots.save_pdf", lambda plot, folder: None)
        build([root / "results"], root / "out" / "report", formats=FORMATS)
    assert {path.name for path in root.iterdir()} == {"results", "out"}
    assert files_in(root / "out") == {
        "report",
        *(f"report/{n}" for n in files_in(root / "out/report")),
    }
    return root / "out" / "report"


def test_records_and_reports_stay_in_their_folders(reports: Path) -> None:
    results = reports.parents[1] / "results"
    assert all(path.parent.parent.parent == results for path in results.rglob("*.json"))
    names = {path.relative_to(reports).parts[0] for path in reports.rglob("*")}
    assert names == {"figures", "tables", "paper", "index.html", "report.md"}
    assert all(re.fullmatch(r"[A-Za-z0-9._=-]+", path.name) for path in reports.rglob("*"))


def test_no_cell_of_a_table_is_a_formula(reports: Path) -> None:
    quoted, negative = 0, 0
    for path in reports.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for cell in (cell for line in csv.reader(file) for cell in line):
                if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                    negative += float(cell) < 0  # raises where it is no number
                quoted += cell.startswith(("'=", "'+", "'-", "'@"))
    assert quoted > 20 and negative > 0


def test_names_are_no_html_in_markdown_and_on_the_page(reports: Path) -> None:
    text = (reports / "report.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)  # code is shown as it is
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text
    assert (reports / "index.html").read_text(encoding="utf-8").count("</script>") == 3


def test_names_are_no_commands_of_latex(reports: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in reports.rglob("*.tex")]
    assert not any(r"\input{/etc" in text or r"\write18" in text for text in texts)
    assert any(r"\textbackslash{}input\{/etc/passwd\}" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("report.md", ["markdown"]),
        ("index.html", ["html"]),
        ("tables/mine.csv", ["csv"]),
        ("tables/mine.tex", ["latex"]),
        ("figures/mine.png", ["markdown"]),
        ("paper/main.tex", ["paper"]),
        ("report.md", FORMATS),
    ],
)
def test_what_is_no_report_is_not_overwritten(
    name: str, formats: list[str], tmp_path: Path
) -> None:
    results = write(vit(synthetic())[:1], tmp_path / "results")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    before = files_in(tmp_path)
    with pytest.raises(BenchError, match=f"{Path(name).parts[0]} exists but is not part of a rep"):
        build([results], tmp_path / "out", formats=formats)
    assert (tmp_path / "out" / name).read_text() == "mine" and files_in(tmp_path) == before


def test_a_link_out_of_a_report_is_not_followed(tmp_path: Path) -> None:
    results = write(vit(synthetic())[:1], tmp_path / "results")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a--b.csv").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tables").symlink_to(tmp_path / "mine")
    build([results], tmp_path / "out", formats=["csv"])
    assert (tmp_path / "mine" / "a--b.csv").read_text() == "mine"
    assert not (tmp_path / "out" / "tables").is_symlink()
