"""The page: what is in the file, and what a reader can do with it in a real browser."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_report

from bench.core.errors import BenchError
from bench.records.record import Record
from bench.report import build
from bench.report.content import content
from bench.report.data import frame
from bench.report.data.names import series
from bench.report.figures import style
from bench.report.page import page, page_data

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    done = test_report.synthetic()
    broken = replace(done[-1], key="f" * 64, status="failed", reason=f"out of {EVIL}")
    named = replace(done[1], key="e" * 64, cell=replace(done[1].cell, params={"note": EVIL}))
    broken = replace(broken, cell=replace(broken.cell, params={"r": 99}))
    return [*done, named, broken]


def written(records: list[Record], folder: Path) -> Path:
    page.write(content(frame.build(records)), folder)
    return folder / page.NAME


@pytest.fixture(scope="module")
def file(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(records, tmp_path_factory.mktemp("page"))


def embedded(text: str, name: str) -> Any:
    found = re.search(rf'<script type="([^"]*)" id="{name}">(.*?)</script>', text, re.S)
    assert found is not None
    if found[1] == "text/plain":  # deflated
        return json.loads(zlib.decompress(base64.b64decode(found[2])))
    return json.loads(found[2])


# --- without a browser --------------------------------------------------------------------------


def test_data_are_the_records(file: Path, records: list[Record]) -> None:
    text = file.read_text(encoding="utf-8")
    data, kept = embedded(text, "data"), embedded(text, "records")
    done = {record.key: record for record in records if record.status == "ok"}
    assert len(data["cells"]) == len(kept) == len(done)
    for cell, shown in zip(data["cells"], kept, strict=True):
        record = done[shown["key"]]
        assert shown["cost"]["macs"]["total"] == record.cost.macs.total
        name = series(record.cell.method, record.cell.params)
        assert (cell["method"], cell["model"]) == (name, record.cell.model)
        assert record.cost.macs is not None and record.accuracy.primary is not None
        assert cell["gmacs"] == pytest.approx(record.cost.macs.total / 1e9, rel=1e-5)
        value = record.accuracy.metrics[record.accuracy.primary].value
        assert cell["accuracy_value"] == pytest.approx(value, rel=1e-5)
        assert set(cell["speeds"]) == {"1", "8", "32"}
        layers = [n for pairs in record.cost.tokens.values() for _, n in pairs]
        assert cell["tokens"] == pytest.approx(np.mean(layers), rel=1e-5)


def test_page_needs_nothing_else_and_cannot_be_broken_into(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", text)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|sendBeacon", text)
    assert "default-src 'none'" in text
    assert EVIL not in text and "<img src=x" not in text
    assert text.count("</script>") == 3  # data, records, code


def test_same_records_same_bytes(file: Path, records: list[Record], tmp_path: Path) -> None:
    again = written(records[::-1], tmp_path)
    assert again.read_bytes() == file.read_bytes()


def test_methods_look_as_in_the_figures(file: Path) -> None:
    shown = embedded(file.read_text(encoding="utf-8"), "data")["looks"]
    assert shown["tome"]["color"] == style.KNOWN["tome"].color
    assert shown["tome"]["path"] == "M-0.500 0.500L0.500 0.500L0.500 -0.500L-0.500 -0.500Z"
    assert len({look["path"] for look in shown.values()}) == len(shown)


def test_committed_results_make_a_light_page(repo: Path, tmp_path: Path) -> None:
    path = build([*repo.glob("results/*/quick")], tmp_path / "out", formats=["html"])
    assert path.name == "index.html" and [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert path.stat().st_size < 2_000_000


def test_formats_and_folders_of_others(repo: Path, tmp_path: Path) -> None:
    results = [*repo.glob("results/*/quick")]
    with pytest.raises(BenchError, match="no format 'htm'.*'html'"):
        build(results, tmp_path / "out", formats=["htm"])
    (tmp_path / "index.html").write_text("<p>somebody's page</p>")
    with pytest.raises(BenchError, match=r"index\.html exists but is not part of a report"):
        build(results, tmp_path, formats=["html"])


def test_no_records_but_failures_make_a_page(records: list[Record], tmp_path: Path) -> None:
    text = written(records[-1:], tmp_path).read_text(encoding="utf-8")
    assert embedded(text, "data")["cells"] == [] and "Cells that did not finish" in text


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        path = path or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser: install Chromium or set BROWSER_PATH")
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """An open page, what it asked the network for and what went wrong in it."""

    def __init__(self, browser: Any, file: Path, place: str = "", **settings: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **settings}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)  # a core may be busy
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.file, self.address = file, file.as_uri()
        self.page.goto(f"{self.address}#{place}" if place else self.address)

    def cells(self) -> list[dict[str, Any]]:
        text = self.page.locator("#data").text_content()
        found: list[dict[str, Any]] = json.loads(text)["cells"]
        return found

    def column(self, name: str) -> list[float | None]:
        heads = self.page.locator("#heads th").all_inner_texts()
        at = next(i for i, head in enumerate(heads) if head.startswith(name)) + 1
        texts = self.page.locator(f"#rows tr > :nth-child({at})").all_inner_texts()
        found = [re.match(r"[-+]?[\d.]+", text.strip().replace("−", "-")) for text in texts]
        return [float(match[0]) if match else None for match in found]

    def landmarks(self) -> list[str]:
        """The names of the page's landmarks, none of which is empty or there twice."""
        names: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('section, [role=region]')].map((n) => n.ariaLabel"
            " || document.getElementById(n.getAttribute('aria-labelledby'))?.innerText)"
        )
        assert all(names) and len(names) == len(set(names))
        return names

    def tick(self, *columns: str) -> None:
        """Show columns that are not shown, hide those that are."""
        menu = self.page.locator(".menu summary")
        menu.click()
        for key in columns:
            self.page.click(f'#columns [value="{key}"]')
        menu.click()

    def saved(self) -> list[dict[str, str]]:
        """Save the table as CSV, and read it."""
        with self.page.expect_download() as download:
            self.page.click("#csv")
        with open(download.value.path(), newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())


@pytest.fixture
def visit(browser: Any, file: Path) -> Iterator[Visit]:
    found = Visit(browser, file)
    yield found
    assert found.errors == []
    assert found.requests == [found.address]  # nothing but the file itself
    assert found.page.evaluate("window.hacked") is None
    found.context.close()


def test_pointing_at_the_plot(visit: Visit) -> None:
    shape = visit.page.locator('.point[data-method="evit"] .shape').first
    box = shape.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = visit.page.locator(".tip")
    assert not tip.is_visible()
    visit.page.mouse.move(*middle)
    assert tip.is_visible()
    words = tip.inner_text()
    for word in ("evit", "keep_rate=", "GMACs", "batch 32", "MiB", "embedded:clip-emoji"):
        assert word in words
    visit.page.mouse.click(*middle)
    dialog = visit.page.get_by_role("dialog")
    assert dialog.is_visible()
    record = json.loads(visit.page.locator("#record-text:not(:empty)").inner_text())
    assert record["cell"]["method"] == "evit" and record["env"]["cpu"] == "Some CPU"
    assert record["accuracy"]["outcomes"]["rank_i2t"].startswith("… 400 values")
    visit.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_methods_and_axes(visit: Visit) -> None:
    every = visit.count(".point")
    button = visit.page.locator('#legend [data-method="tome"]')
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert visit.count('.point[data-method="tome"]') == 0 and visit.count(".point") == every - 3
    visit.page.get_by_role("button", name="Show no").click()
    assert visit.count(".point") == 0 and "No method" in visit.page.inner_text("#figure")
    visit.page.get_by_role("button", name="Show all").click()
    assert visit.count(".point") == every
    where = "[...document.querySelectorAll('.shape')].map((n) => n.getAttribute('transform'))"
    before = visit.page.evaluate(where)
    for x, y in (("speed32", "accuracy"), ("tokens", "memory"), ("left", "ms1")):
        visit.page.select_option("#x", x)
        visit.page.select_option("#y", y)
        assert visit.count(".point") == every
        after = visit.page.evaluate(where)
        assert after != before
        before = after
    assert "median latency (ms), batch 1" in visit.page.inner_text("#figure")
    visit.page.select_option("#panel", "1")
    assert visit.page.input_value("#x") == "left"  # a choice outlives a change of the model
    assert visit.page.input_value("#only") == "1"  # and the table follows


def test_front_holds_what_no_other_beats(visit: Visit) -> None:
    cells = visit.page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).cells"
        ".filter((c) => c.panel === 0).map((c) => [c.gmacs, c.accuracy_value])"
    )
    best = [a for a in cells if not any(b[0] <= a[0] and b[1] >= a[1] and b != a for b in cells)]
    line = visit.page.locator(".front").get_attribute("points").split()
    assert len(line) == len({tuple(p) for p in best}) or len(line) == len(best)


def test_what_was_disturbed_is_hollow_marked_and_on_no_front(
    browser: Any, records: list[Record], tmp_path: Path
) -> None:
    done = [record for record in records if record.status == "ok"]
    victim = next(r for r in done if r.cell.label == "tome r=8" and "clip" in r.cell.model)
    *others, last = victim.cost.latency
    speedup = replace(last.speedup, median=99.0)  # it would win
    cost = replace(victim.cost, latency=[*others, replace(last, speedup=speedup, disturbed=True)])
    shaky = [replace(r, cost=cost) if r is victim else r for r in done]
    visit = Visit(browser, written(shaky, tmp_path))
    visit.page.select_option("#x", "speed32")
    assert visit.count(".hollow") == visit.count('.hollow[data-method="tome"]') == 1
    ends = visit.page.locator(".front").get_attribute("points").split()
    spot = visit.page.locator(".hollow .target")
    right = max(float(point.split(",")[0]) for point in ends)
    assert float(spot.get_attribute("cx")) > right + 10
    assert "Hollow: disturbed by other load" in visit.page.inner_text("#plot-note")
    assert sum("◊" in text for text in visit.page.locator("#rows tr").all_inner_texts()) == 1
    visit.page.select_option("#x", "gmacs")
    assert visit.count(".hollow") == 0
    assert visit.errors == []
    visit.context.close()


def test_keyboard_alone(visit: Visit) -> None:
    seen = []
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        seen.append(
            visit.page.evaluate(
                "document.activeElement.id || document.activeElement.getAttribute('class') || ''"
            )
        )
        if seen[-1].startswith("point"):
            seen[-1] = "point"
            break
    assert [name for name in seen if name in ("panel", "x", "y", "point")] == [
        "panel",
        "x",
        "y",
        "point",
    ]
    tip, active = visit.page.locator(".tip"), visit.page.locator(":focus")
    assert tip.is_visible()
    first = active.get_attribute("aria-label")
    visit.page.keyboard.press("ArrowRight")
    assert active.get_attribute("aria-label") != first
    method = active.get_attribute("data-method")
    visit.page.keyboard.press("Escape")
    assert not tip.is_visible()
    for key in ("Enter", " "):
        visit.page.keyboard.press(key)
        assert visit.page.get_by_role("dialog").is_visible()
        assert method in visit.page.inner_text("#record-title")
        visit.page.keyboard.press("Escape")
        assert active.get_attribute("data-method") == method  # back where it was
    visit.page.keyboard.press("Tab")  # one stop for all points
    assert visit.page.evaluate("document.activeElement.id") == "filter"
    visit.page.locator(".open").first.press("Enter")
    assert visit.page.get_by_role("dialog").is_visible()


def test_every_control_has_a_name(visit: Visit) -> None:
    for role in ("combobox", "searchbox", "slider", "button", "region", "dialog"):
        for node in visit.page.get_by_role(role).all():
            assert node.evaluate(
                "n => n.ariaLabel || n.labels?.[0]?.innerText || n.innerText"
                " || n.getAttribute('aria-labelledby')"
            ), role


def test_landmarks_have_names_of_their_own(visit: Visit) -> None:
    assert len(visit.landmarks()) > 5
    levels = visit.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((n) => n.tagName)")
    assert levels[0] == "H1" and levels.count("H1") == 1


def test_the_table_of_a_phone_scrolls_in_its_box(browser: Any, file: Path) -> None:
    visit = Visit(browser, file, viewport={"width": 390, "height": 844}, has_touch=True)
    visit.page.select_option("#only", "")
    visit.tick("gmacs", "ms", "memory", "tokens")
    box, name = visit.page.locator("#scroll"), visit.page.locator("#rows th").first
    assert box.evaluate("n => n.scrollWidth > n.clientWidth + 300")
    before = name.bounding_box()
    box.evaluate("n => { n.scrollLeft = 400 }")
    assert name.bounding_box()["x"] == before["x"]  # the first column stays
    assert before["width"] < 195  # and leaves room for the others
    assert visit.page.evaluate("[document.documentElement.scrollWidth, scrollX]") == [390, 0]
    small = visit.page.evaluate(
        "[...document.querySelectorAll('button, select, summary, .menu label, input[type=search]')]"
        ".filter((n) => n.offsetParent && n.offsetHeight < 24).map((n) => n.outerHTML)"
    )
    assert small == []
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Any, file: Path, scheme: str) -> None:
    settings = {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "color_scheme": scheme,
    }
    visit = Visit(browser, file, **settings)
    width = "document.documentElement.scrollWidth"
    assert visit.page.evaluate(width) == 390
    visit.page.select_option("#only", "")
    assert visit.page.evaluate(width) == 390
    shape = visit.page.locator(".point .shape").nth(3)
    shape.scroll_into_view_if_needed()
    box = shape.bounding_box()
    visit.page.touchscreen.tap(box["x"] + 4, box["y"] + 4)  # a finger looks first
    assert (
        visit.page.locator(".tip").is_visible()
        and not visit.page.get_by_role("dialog").is_visible()
    )
    assert visit.page.evaluate(width) == 390
    visit.page.touchscreen.tap(box["x"] + 4, box["y"] + 4)
    assert visit.page.get_by_role("dialog").is_visible()
    assert visit.errors == [] and visit.requests == [visit.address]
    visit.context.close()


def luminance(color: str) -> float:
    r, g, b = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    return 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, file: Path, scheme: str) -> None:
    visit = Visit(browser, file, color_scheme=scheme)
    style_of = "node => getComputedStyle(node)"
    paper = luminance(visit.page.locator("html").evaluate(f"n => ({style_of})(n).backgroundColor"))
    assert (paper > 0.9) == (scheme == "light")
    for selector in ("h1", ".note", "#rows td", "small"):
        color = visit.page.locator(selector).first.evaluate(f"n => ({style_of})(n).color")
        ink = luminance(color)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, selector
    visit.context.close()


def test_thousands_of_cells(browser: Any, records: list[Record], tmp_path: Path) -> None:
    panels, cells, kept = page_data.cells(frame.build(records))
    many = 5000 // len(cells) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_data, "cells", lambda frames: (panels, cells * many, kept * many))
        file = written(records, tmp_path)
    assert file.stat().st_size < 15_000_000
    visit = Visit(browser, file)
    visit.page.select_option("#only", "")
    assert visit.count("#rows tr") == 200
    visit.page.locator("#more").click()
    assert visit.count("#rows tr") == 400
    took = visit.page.evaluate(
        "() => { const t = performance.now(); const box = document.getElementById('filter');"
        " box.value = 'gmacs<0.3'; box.dispatchEvent(new Event('input'));"
        " return performance.now() - t }"
    )
    assert took < 1500  # on a busy core
    visit.page.locator(".open").first.click()
    assert visit.page.get_by_role("dialog").is_visible()
    visit.context.close()


# --- tokens -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick")
    return build([*repo.glob("results/*/quick")], out, formats=["html"])


def test_seeing_the_tokens(browser: Any, quick: Path) -> None:
    visit = Visit(browser, quick)
    at = visit.page
    at.locator("#samples canvas").nth(3).wait_for()  # unpacking takes a moment
    words = at.locator("#samples canvas").first
    at.select_option("#tokens-set", "1")
    at.select_option("#tokens-cell", label="topk keep_rate=0.515")
    at.locator('#samples canvas[aria-label="34 patches kept, 222 dropped"]').first.wait_for()
    slide = at.locator("#tokens-slide")
    assert slide.get_attribute("max") == "12"
    drawn = "c => c.toDataURL()"
    end = words.evaluate(drawn)
    slide.press("Home")
    at.locator('#samples canvas[aria-label="256 patches kept"]').first.wait_for()
    assert at.inner_text("#tokens-layer") == "0, the input" and words.evaluate(drawn) != end
    for _ in range(4):
        slide.press("ArrowRight")
    at.locator('#samples canvas[aria-label="131 patches kept, 125 dropped"]').first.wait_for()
    at.select_option("#tokens-cell", label="tome r=21")
    at.locator('#samples canvas[aria-label*="merged into"]').first.wait_for()
    caption = at.locator("#samples figcaption").first.inner_text()
    assert "shows" in caption and "none" in caption and "tome" in caption
    assert visit.errors == [] and visit.requests[0] == visit.address
    assert all(url.startswith("data:image/png") for url in visit.requests[1:])
    at.set_viewport_size({"width": 390, "height": 844})
    assert at.evaluate("document.documentElement.scrollWidth") == 390
    visit.context.close()


def test_the_page_begins_with_the_headlines(records: list[Record], tmp_path: Path) -> None:
    names = {"embedded:vit-fashion": "<b>my</b> ViT_1"}
    cells = [replace(r, cell=replace(r.cell, names=names)) for r in records]
    root = test_report.write(cells, tmp_path / "r")
    build([root], tmp_path / "o", formats=["html", "markdown"], figures=0)
    text = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    section = text.partition('<section id="findings"')[2].partition("</section>")[0]
    told = (tmp_path / "o" / "report.md").read_text(encoding="utf-8")
    head = told.partition("\n## ")[0].splitlines()
    assert section.count("<li>") == sum(line.startswith("- ") for line in head) == 2
    assert "<b>tome r=16</b>" in section and "share the lead" in section
    assert "<b>my</b>" not in section and "&lt;b&gt;my&lt;/b&gt; ViT_1" in section
