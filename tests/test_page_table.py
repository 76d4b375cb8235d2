"""The page's table in a real browser: sorted, filtered, chosen, saved, and restored from a link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import test_report
from test_page import Visit, browser, file, records, visit, written

from bench.records.record import Record
from bench.report.data import frame
from bench.report.data.differences import FLAGS
from bench.report.tables.spreadsheet import harmless

__all__ = ["browser", "file", "records", "visit"]  # fixtures


def test_sorting(visit: Visit) -> None:
    visit.tick("gmacs")
    button = visit.page.locator('#heads [data-key="gmacs"]')
    head = button.locator("..")
    assert head.get_attribute("aria-sort") == "none"
    button.click()
    most_first = visit.column("GMACs")
    assert head.get_attribute("aria-sort") == "descending"
    assert most_first == sorted(most_first, key=lambda v: -(v or 0)) and len(set(most_first)) > 5
    button.press("Enter")  # the button keeps the focus
    assert head.get_attribute("aria-sort") == "ascending"
    assert visit.column("GMACs") == sorted(most_first, key=lambda v: v or 0)
    visit.page.locator('#heads [data-key="delta"]').click()
    assert visit.column("Δ")[-1] is None  # the baseline has no difference: last, not first


def test_differences_are_marked_as_in_the_tables(visit: Visit, records: list[Record]) -> None:
    wanted = {
        (row["method"], row["setting"] or "–", row["model"]): {
            flag.mark for flag in FLAGS if row[flag.field]
        }
        for rows in frame.build(records).by_group.values()
        for row in rows
    }
    assert any("†" in marks for marks in wanted.values())
    visit.page.select_option("#only", "")
    assert visit.count("#rows tr") == len(wanted)
    for cells in visit.page.locator("#rows tr").all():
        method, setting, model, *_ = texts = cells.locator("> *").all_inner_texts()
        assert set(texts[5]) & {"≈", "†", "‡"} == wanted[method.strip(), setting, model]


def test_filtering(visit: Visit) -> None:
    assert visit.count("#rows tr") == 22  # those of the model and task that the plot shows
    visit.page.select_option("#only", "")
    assert visit.count("#rows tr") == 45
    visit.page.fill("#filter", "tome fashion")
    assert visit.page.locator("#rows th").all_inner_texts() == ["\u00a0tome"] * 3
    assert visit.page.locator("#count").inner_text() == "3 of 45 cells"
    visit.tick("gmacs", "ms")
    visit.page.fill("#filter", "gmacs<0.3 accuracy>80")
    assert all(v is not None and v < 0.3 for v in visit.column("GMACs"))
    assert all(v is not None and v > 80 for v in visit.column("Accuracy"))
    visit.page.fill("#filter", "nothing-like-it")
    assert visit.count("#rows tr") == 0
    visit.page.fill("#filter", "")
    visit.page.select_option("#panel", "1")
    visit.page.select_option("#only", "1")
    slow, fast = visit.column("p50 ms"), visit.page.select_option("#batch", "1")
    assert fast and visit.column("p50 ms") != slow


def test_at_most_eight_columns_until_more_are_chosen(visit: Visit) -> None:
    assert visit.count("#heads th") == 6  # model and task are those chosen
    assert visit.count("#columns :disabled") == 2
    visit.page.select_option("#only", "")
    assert visit.count("#heads th") == 8
    visit.tick("memory")
    assert visit.count("#heads th") == 9 and max(v or 0 for v in visit.column("Peak MiB")) > 100


def test_an_empty_result_says_why(visit: Visit) -> None:
    visit.page.select_option("#only", "")
    highest = max(cell["accuracy_value"] for cell in visit.cells() if cell["method"] == "tome")
    for words, why in (
        ("tome accuracy>=99", f"No cell with tome has accuracy >= 99; the highest is {highest:g}"),
        ("gmacs<-1", "No cell has GMACs < −1; the lowest is "),
        ("tome evit", "No cell with tome has “evit” in its method, setting, model or task"),
        ("speed>", "No cell is shown: write a number behind speed>"),
        ("sped>1", "No cell has a number called “sped”; there are accuracy, delta, gmacs"),
    ):
        visit.page.fill("#filter", words)
        assert visit.page.inner_text("#count").startswith(f"0 of 45 cells. {why}")
    assert visit.page.locator("#csv").is_disabled()


def test_pareto_front_of_accuracy_and_a_cost(visit: Visit) -> None:
    def beaten(one: Any, other: Any, cost: Any) -> bool:
        two = [(cell["accuracy_value"], cost(cell)) for cell in (one, other)]
        (a, x), (b, y) = two
        return one["panel"] == other["panel"] and b >= a and y >= x and (a, x) != (b, y)

    visit.page.select_option("#only", "")
    costs = {
        "gmacs": lambda cell: -cell["gmacs"],
        "speed": lambda cell: cell["speeds"]["32"][1],
        "ms": lambda cell: -cell["speeds"]["32"][0],
    }
    for key, cost in costs.items():
        best = [
            cell
            for cell in visit.cells()
            if not any(beaten(cell, other, cost) for other in visit.cells())
        ]
        visit.page.select_option("#front", key)
        shown = {(row["method"], row["setting"], row["task"]) for row in visit.saved()}
        assert shown == {(cell["method"], cell["setting"], cell["task"]) for cell in best}
        assert 2 < len(best) == visit.count("#rows tr") < 45
    told = visit.page.inner_text("#count")
    assert told.endswith("beats these in accuracy and p50 ms at batch 32")


# --- links and files ----------------------------------------------------------------------------


def test_a_link_shows_what_its_sender_saw(visit: Visit, browser: Any) -> None:
    at = visit.page
    at.select_option("#panel", "1")
    at.locator('#legend [data-method^="random, note"]').click()  # a name with a comma
    at.select_option("#x", "left")
    at.locator('#legend [data-method="tome"]').click()
    at.select_option("#only", "")
    visit.tick("gmacs", "tokens")
    at.locator('#heads [data-key="gmacs"]').click()
    at.fill("#filter", "speed>=1.01 fashion")
    at.select_option("#front", "memory")
    at.locator("details.fold summary").nth(1).click()
    at.wait_for_url("**open=study*")
    guest = Visit(browser, visit.file, place=at.url.partition("#")[2])
    for place in ("#rows", "#heads", "#count", "#figure"):
        assert guest.page.inner_text(place) == at.inner_text(place)
    assert guest.count("#legend [aria-pressed=false]") == 2
    assert guest.page.locator("details.fold[open]").evaluate_all("all => all.map((n) => n.id)") == [
        at.locator("details.fold").nth(1).get_attribute("id")
    ]
    assert guest.page.url == at.url and guest.page.inner_text("#unknown") == ""
    strange = Visit(browser, visit.file, place="sort=-nothing&only=all&colour=red&hidden=%25E0%25")
    told = strange.page.inner_text("#unknown")
    assert "sort=-nothing" in told and "colour=red" in told and "only" not in told
    assert strange.count("#rows tr") == 45 and strange.page.url.endswith("#only=all")
    for other in (guest, strange):
        assert other.errors == []
        other.context.close()


def test_back_undoes_the_last_choice(visit: Visit) -> None:
    at = visit.page
    at.locator('#heads [data-key="delta"]').click()
    at.locator("#filter").press_sequentially("tome")
    at.select_option("#only", "")
    assert visit.count("#rows tr") == 6
    at.go_back()
    assert at.input_value("#only") == "0" and at.input_value("#filter") == "tome"
    at.go_back()  # a word is one step, not four
    assert at.input_value("#filter") == "" and visit.count("#rows tr") == 22
    assert at.locator('[aria-sort="descending"]').inner_text().startswith("Δ")
    at.locator(".skip").press("Enter")  # a place on the page changes nothing of its state
    assert at.url.endswith("#cells")
    assert visit.count('[aria-sort="descending"]') == 1
    at.go_back()
    at.go_back()
    assert visit.count('[aria-sort="descending"]') == 0 and at.url == visit.address
    at.go_forward()
    assert visit.count('[aria-sort="descending"]') == 1


def test_csv_holds_the_rows_and_columns_shown(visit: Visit) -> None:
    visit.page.select_option("#only", "")
    visit.tick("gmacs", "speed")
    visit.page.locator('#heads [data-key="gmacs"]').click()
    visit.page.fill("#filter", "tome")
    rows = visit.saved()
    assert [row["setting"] for row in rows] == visit.page.locator(
        "#rows td.setting"
    ).all_inner_texts()
    cells = {(c["method"], c["setting"], c["task"]): c for c in visit.cells()}
    for row in rows:
        cell = cells[row["method"], row["setting"], row["task"]]
        for key in ("accuracy_value", "accuracy_low", "delta", "delta_high", "gmacs"):
            assert float(row[key]) == cell[key]
        assert row["macs_scope"] and row["metric"] and row["unit"] == "%"
    assert "speedup_x" not in rows[0] and "peak_mib" not in rows[0]
    visit.tick("ms")
    row = visit.saved()[0]
    assert row["batch"] == "32" and "sdpa" in row["timed_on"] and float(row["p50_ms"]) > 0


def test_no_cell_of_the_csv_is_a_formula(
    browser: Any, records: list[Record], tmp_path: Path
) -> None:
    texts = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", "\t=1", "-3.2", "+1e5", 'say "a,b"']
    one = next(record for record in records if record.cell.label == "tome r=8")
    evil = [
        replace(one, key=f"{i:064x}", cell=replace(one.cell, method=text, label=f"{text} r=8"))
        for i, text in enumerate(texts)
    ]
    visit = Visit(browser, written([*test_report.vit(records[:-2]), *evil], tmp_path))
    methods = {row["method"] for row in visit.saved()}
    assert methods >= {harmless(text) for text in texts}
    assert {"'=HYPERLINK(1)", "'-2+3", "-3.2", "+1e5", 'say "a,b"'} <= methods
    assert any(row["delta"].startswith("-") for row in visit.saved())  # a number stays one
    visit.context.close()
