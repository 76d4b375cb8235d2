"""The paper, the filters and the styles of a report."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.text import Text
from test_report import synthetic, tables_in, vit, write
from test_report_latex import compiled, needs_latex

from bench.core.errors import BenchError
from bench.core.registry import methods
from bench.records.record import Record
from bench.report import build
from bench.report.data import frame, load
from bench.report.figures import style
from bench.report.headlines import headline
from bench.report.paper.paper import references
from bench.report.tables import latex


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return vit(synthetic())


@pytest.fixture(scope="module")
def results(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(records, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def paper(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "out"
    return build([results], out, formats=["paper"], style="cvpr")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)


def test_every_method_with_a_paper_has_a_reference() -> None:
    known = references()
    for name, cls in methods().items():
        number = cls.url.removeprefix("https://arxiv.org/abs/")
        if cls.url:
            assert f"arXiv:{number}" in known[name][1], name
    assert known.keys() <= methods().keys()


def test_the_paper_holds_the_protocol_and_all_that_it_names(paper: Path) -> None:
    text = (paper / "main.tex").read_text()
    for fact in (
        "Some CPU",  # hardware
        "2.9",  # torch
        "fvcore's rules",  # conventions
        "run\\_bench.py run --suite quick",
        "tome~\\cite{tome}",
        "topk~\\cite{topk+kmedoids}",
        "twocolumn",
        "textwidth=6.875in",
    ):
        assert fact in text
    main = (paper / "tables/embedded-vit-fashion--fashion-mnist--main.tex").read_text()
    assert "cpu $\\cdot$ float32 $\\cdot$ sdpa $\\cdot$ 2 threads" in main  # dtype and backend
    files = {p.relative_to(paper).as_posix() for p in paper.rglob("*.*")}
    named = set(re.findall(r"\{((?:tables|figures)/[^}]+)\}", text))
    assert files == named | {"main.tex", "references.bib"}
    cited = set(re.findall(r"\\cite\{([^}]+)\}", text))
    assert cited == set(
        re.findall(r"^@\w+\{([^,]+),", (paper / "references.bib").read_text(), re.M)
    )


def test_the_body_has_the_finding_two_figures_and_two_tables(
    paper: Path, records: list[Record]
) -> None:
    body, appendix = (paper / "main.tex").read_text().split("\\appendix\n")
    frames = frame.build(records)
    (finding,) = filter(None, (headline(frames, group) for group in frames.groups()))
    assert latex.plain(finding) in body.partition("\\end{abstract}")[0]
    tables, figures = (
        re.findall(rf"\{{({kind}/[^}}]+)\}}", body) for kind in ("tables", "figures")
    )
    assert len(tables) == len(figures) == 2
    assert not set(tables) & set(re.findall(r"\{(tables/[^}]+)\}", appendix))
    for name in tables:
        assert "\\footnotesize" in (tex := (paper / name).read_text()) and "adjustbox" not in tex
    assert "max width" in (paper / "tables/origins.tex").read_text()  # scaled, in the appendix


@needs_latex
@pytest.mark.skipif(shutil.which("bibtex") is None, reason="needs bibtex")
def test_the_paper_compiles(paper: Path, tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    shutil.copytree(paper, folder)
    compiled(folder, "main")
    subprocess.run(["bibtex", "main"], cwd=folder, check=True, capture_output=True)
    compiled(folder, "main")
    compiled(folder, "main")
    log = (folder / "main.log").read_text(errors="replace")
    assert "undefined" not in log and "multiply defined" not in log
    assert "Overfull" not in log and "Float too large" not in log


@pytest.mark.usefixtures("no_figures")
def test_methods_are_hidden_after_all_were_compared(results: Path, tmp_path: Path) -> None:
    whole = build([results], tmp_path / "a").read_text()
    some = build([results], tmp_path / "b", methods=["tome"]).read_text()
    tables = [next(t for t in tables_in(x) if "Δ to none" in t[0]) for x in (whole, some)]
    assert {row["Method"] for row in tables[1]} == {"none", "tome"}
    kept = {row["Setting"]: row for row in tables[0] if row["Method"] == "tome"}
    for row in tables[1][1:]:
        for name in ("Δ to none", "Δ to random"):  # random is hidden, and still the rival
            assert row[name] == kept[row["Setting"]][name] != "–"
    with pytest.raises(BenchError, match="no record of the method 'tomme'.*tome"):
        build([results], tmp_path / "c", methods=["tomme"])


@pytest.mark.usefixtures("no_figures")
def test_profiles_and_formats(records: list[Record], tmp_path: Path) -> None:
    other = [replace(r, key=r.key[::-1], cell=replace(r.cell, profile="gpu")) for r in records[:3]]
    root = write([*records, *other], tmp_path / "r")
    out = tmp_path / "out"
    assert "3 finished cells" in build([root], out, profiles=["gpu"]).read_text()
    path = build([root], out, formats=["csv"])
    assert path == out / "tables" and (out / "report.md").exists()  # which was there before
    assert {p.suffix for p in path.iterdir()} == {".csv"}
    text = build([root], tmp_path / "bare", formats=["markdown"]).read_text()
    assert "[CSV]" not in text and not (tmp_path / "bare" / "tables").exists()
    for options, fix in (
        ({"profiles": ["gpux"]}, "no profile 'gpux' here.*gpu"),
        ({"formats": ["markdwn"]}, "no format 'markdwn' here.*markdown"),
        ({"style": "cvprr"}, "unknown style 'cvprr'.*cvpr"),
    ):
        with pytest.raises(BenchError, match=fix):
            build([root], out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", style.STYLES)
def test_figures_have_the_width_of_their_page(name: str, records: list[Record]) -> None:
    from bench.report.content import content
    from bench.report.figures import plots

    page = style.STYLES[name]
    frames = frame.build(records)
    with style.use(name):
        for plot in content(frames).groups[0].plots:
            with plots._drawn(plot) as figure:
                wanted = page.column_in if plot.narrow else page.text_in
                assert figure.get_figwidth() == wanted
                sizes = [text.get_fontsize() for ax in figure.axes for text in ax.get_xticklabels()]
                assert sizes == pytest.approx([11 / 12 * page.font_pt] * len(sizes))  # seaborn's
        with style.printed(), plots._drawn(content(frames).groups[0].plots[0]) as figure:
            texts = figure.findobj(Text)
            assert min(text.get_fontsize() for text in texts if text.get_text()) >= 8  # type: ignore[attr-defined]
    assert style.active() == style.STYLES["page"]


def test_merged_machines_keep_their_tables(records: list[Record], tmp_path: Path) -> None:
    write(records[:2], tmp_path / "a")
    write([replace(r, env=r.env | {"machine": "b"}) for r in records[:2]], tmp_path / "b")
    found, _ = load.read([tmp_path / "a", tmp_path / "b"])
    assert len(found) == 4 and {load.machine(r) for r in found} == {"box", "b"}
