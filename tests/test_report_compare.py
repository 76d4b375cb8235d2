"""Two sets of records side by side: better, worse, within noise, and clear errors."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import accuracy, metric, synthetic, tables_in, vit, write

from bench.core.errors import BenchError
from bench.records.record import Accuracy, Record
from bench.report.tables import compare as comparison
from bench.report.tables.compare import compare


@pytest.fixture(scope="module")
def old() -> list[Record]:
    return vit(synthetic())[:8]


def faster(record: Record, factor: float) -> Record:
    latency = [
        replace(
            entry,
            samples_ms=[ms / factor for ms in entry.samples_ms],
            speedup=replace(entry.speedup, median=entry.speedup.median * factor),
        )
        for entry in record.cost.latency
    ]
    return replace(record, cost=replace(record.cost, latency=latency))


def sections(text: str) -> dict[str, list[dict[str, str]]]:
    parts = [part for part in text.split("\n## ")[1:] if not part.startswith("By method")]
    return {p.partition(":")[0]: [r for t in tables_in(p) for r in t] for p in parts}


def changed(old: list[Record]) -> list[Record]:
    """The same cells: one scores less, one is faster, one counts more MACs, one now fails."""
    other = {"weights_sha256": "cd" * 32}
    new = [replace(r, key=r.key[::-1], provenance=r.provenance | other) for r in old]
    macs = new[3].cost.macs
    assert macs
    new[1] = replace(new[1], accuracy=accuracy("fashion-mnist", 9.0, np.random.default_rng(0)))
    new[2] = faster(new[2], 1.5)
    new[3] = replace(new[3], cost=replace(new[3].cost, macs=replace(macs, total=2 * macs.total)))
    new[4] = replace(new[4], status="oom", reason="out of memory")
    return new


def two_lost(record: Record) -> Accuracy:
    """Two samples that were right are wrong now."""
    ranks = np.array(record.accuracy.outcomes["rank"])
    ranks[np.flatnonzero(ranks == 0)[:2]] = 7
    outcomes = {"correct": (ranks < 1).astype(int).tolist(), "rank": ranks.tolist()}
    values = {"top1": ranks < 1, "top5": ranks < 5}
    return Accuracy("top1", {name: metric(v) for name, v in values.items()}, outcomes)


def test_a_change_within_what_equal_things_show_is_noise(old: list[Record], tmp_path: Path) -> None:
    """The samples scatter by little, and two equal things differ by more than the change."""

    def shaky(record: Record) -> Record:
        latency = [
            replace(entry, speedup=replace(entry.speedup, median=1.08, ci95=(0.9, 1.2)))
            for entry in record.cost.latency
        ]
        return replace(record, cost=replace(record.cost, latency=latency))

    new = [faster(record, 1.1) if not record.cell.baseline else record for record in old]
    plain = [shaky(record) if record.cell.baseline else record for record in old]
    folders = [str(tmp_path / name) for name in ("old", "new", "plain", "shaken")]
    for folder, records in zip(folders, (old, new, plain, new), strict=True):
        write(records, Path(folder))
    verdicts = sections(compare(folders[0], folders[1]))
    assert any(row["Quantity"].startswith("speed-up") for row in verdicts["Better"])
    verdicts = sections(compare(folders[2], folders[1]))
    assert "Better" not in verdicts or not verdicts["Better"]
    assert any(row["Quantity"].startswith("speed-up") for row in verdicts["Within noise"])


def test_a_comparison_begins_with_its_verdict_and_medians_by_method(
    old: list[Record], tmp_path: Path
) -> None:
    write(old, tmp_path / "a")
    write([*old[:2], *(faster(record, 2.0) for record in old[2:])], tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "**2 of these cells are the same records on both sides**" in text
    assert "**Verdict: better** (" in text and "&lt;0.001" in text
    (table,) = tables_in(text.partition("## By method: median change")[2].partition("\n## ")[0])
    assert {row["speed-up, %"] for row in table} <= {"+100.0", "–"}
    same = compare(str(tmp_path / "a"), str(tmp_path / "a"))
    assert "**8 of these cells are the same records" in same
    assert "**Verdict: nothing changed beyond noise**." in same


def test_what_changed_is_told_from_noise(old: list[Record], tmp_path: Path) -> None:
    again = changed(old)
    again[5] = replace(again[5], accuracy=two_lost(again[5]))
    write(old, tmp_path / "a")
    write(again, tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "8 cells in both; in 8 of them code, weights or data changed" in text
    found = {
        name: {(row["Cell"].split(" · ")[2], row["Quantity"]) for row in rows}
        for name, rows in sections(text).items()
    }
    assert found["Better"] == {(old[2].cell.label, f"speed-up, b{b}") for b in (1, 8, 32)}
    assert found["Worse"] == {
        (old[1].cell.label, "top-1 %"),
        (old[3].cell.label, "GMACs"),
        (old[4].cell.label, "status"),
    }
    assert (old[5].cell.label, "top-1 %") in found["Within noise"]
    worse = [row for row in sections(text)["Worse"] if row["Quantity"] == "top-1 %"][0]
    values = [one.accuracy.metrics["top1"].value for one in (old[1], again[1])]
    assert (worse["A"], worse["B"]) == (f"{values[0]:.1f}", f"{values[1]:.1f}")
    assert worse["Change"] == f"{values[1] - values[0]:+.1f}".replace("-", "−")


def test_memory_is_judged_by_the_peak_and_its_own_noise(old: list[Record], tmp_path: Path) -> None:
    """100 MiB grow by 1 %, which a single reading may, by 10 %, and shrink by 10 %."""
    for name, peaks in (("a", (100, 100, 100)), ("b", (101, 110, 90))):
        records = []
        for record, peak in zip(old[:3], peaks, strict=True):
            assert record.cost.memory
            memory = replace(record.cost.memory, peak_bytes=peak * 2**20, weights_bytes=len(name))
            records.append(replace(record, cost=replace(record.cost, memory=memory)))
        write(records, tmp_path / name)
    found = sections(compare(str(tmp_path / "a"), str(tmp_path / "b")))
    changes = {name: [(r["A"], r["B"], r["Change"]) for r in rows] for name, rows in found.items()}
    assert changes == {
        "Better": [("100", "90", "−10.0 %")],
        "Worse": [("100", "110", "+10.0 %")],
        "Within noise": [("100", "101", "+1.0 %")],
    }


def test_nothing_changed_and_cells_of_one_side(old: list[Record], tmp_path: Path) -> None:
    write(old, tmp_path / "a")
    write(old[:-1], tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "## Better: nothing" in text and "## Worse: nothing" in text
    assert "## Within noise" not in text
    assert f"- embedded:vit-fashion · fashion-mnist · {old[-1].cell.label}" in text


def test_two_machines_are_compared_cell_by_cell(old: list[Record], tmp_path: Path) -> None:
    write(old, tmp_path / "a")
    other = [
        replace(faster(r, 2.0), key=r.key[::-1], env=r.env | {"machine": "other"}) for r in old
    ]
    write(other, tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "Machines: box → other" in text
    assert "in 0 of them code, weights or data changed" in text  # the key holds the machine
    assert len(sections(text)["Better"]) == 3 * (len(old) - 1)  # not the unreduced model


def under(record: Record, **conditions: Any) -> Record:
    """The same cell, measured under other conditions: its key says so."""
    text = repr((record.key, conditions))
    key = hashlib.sha256(text.encode()).hexdigest()
    return replace(record, key=key, cell=replace(record.cell, **conditions))


def test_what_other_batch_sizes_leave_is_compared(old: list[Record], tmp_path: Path) -> None:
    """Accuracies and MACs do not depend on them, nor do the timings at the sizes in common."""
    new = []
    for record in changed(old)[:4]:
        cost, memory = record.cost, record.cost.memory
        assert memory
        memory = replace(memory, batch=1, peak_bytes=2 * memory.peak_bytes)
        cost = replace(cost, latency=cost.latency[:1], memory=memory)
        conditions = {"batch_sizes": (1,), "latency_seconds": 0.5}
        new.append(under(replace(record, cost=cost), **conditions))
    write(old[:4], tmp_path / "a")
    write(new, tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "4 cells in both" in text and "4 of them were measured under other conditions" in text
    found = {
        name: {(row["Cell"].split(" · ")[2], row["Quantity"]) for row in rows}
        for name, rows in sections(text).items()
    }
    assert found["Better"] == {(old[2].cell.label, "speed-up, b1")}
    assert found["Worse"] == {(old[1].cell.label, "top-1 %"), (old[3].cell.label, "GMACs")}
    assert "Only in" not in text and "peak MiB" not in text


def test_another_dtype_leaves_what_has_no_values(old: list[Record], tmp_path: Path) -> None:
    write([under(record, dtype="float32") for record in old], tmp_path / "a")
    new = [under(record, dtype="bfloat16", profile="h100") for record in changed(old)]
    write([replace(r, env=r.env | {"machine": "h100"}) for r in new], tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    quantities = {row["Quantity"] for rows in sections(text).values() for row in rows}
    assert "8 cells in both" in text
    assert "GMACs" in quantities and "top-1 %" not in quantities and "peak MiB" not in quantities


def test_each_cell_is_paired_with_the_one_most_alike(old: list[Record], tmp_path: Path) -> None:
    """Two batch sizes on one side, one of them on the other: the other has no partner."""
    slow = [under(record, batch_sizes=(1,)) for record in old]
    fast = [under(faster(record, 3.0), batch_sizes=(8,)) for record in old]
    write([*slow, *fast], tmp_path / "a")
    write(fast, tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "## Better: nothing" in text and "## Worse: nothing" in text
    assert text.count("\n- ") == len(old) and "other conditions" not in text


def test_speed_that_only_scatters_is_noise(old: list[Record], tmp_path: Path) -> None:
    """Runs of the same thing: few comparisons may claim a change."""
    rng, write_times = np.random.default_rng(5), []
    for _ in range(2):
        records = []
        for record in old:
            latency: list[Any] = []
            for entry in record.cost.latency:
                ratios = rng.normal(1.3, 0.05, 15).tolist()
                middle = replace(entry.speedup, median=float(np.median(ratios)))
                times: dict[str, Any] = {"samples_ms": [1.0] * 15, "baseline_samples_ms": ratios}
                latency.append(replace(entry, speedup=middle, **times))
            records.append(replace(record, cost=replace(record.cost, latency=latency)))
        write_times.append(records)
    for name, records in zip("ab", write_times, strict=True):
        write(records, tmp_path / name)
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "## Better: nothing" in text and "## Worse: nothing" in text
    assert len(sections(text)["Within noise"]) == 3 * (len(old) - 1)


def test_a_revision_of_the_results_folder(
    old: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    write(old, tmp_path / "results")
    commands = (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"])
    for command in commands:
        subprocess.run([*git, *command], check=True)
    write(changed(old), tmp_path / "results")
    text = compare("HEAD", "results")
    assert text.startswith("# HEAD → results") and len(sections(text)["Worse"]) == 3


@pytest.mark.parametrize("option", ["--output=stolen", "-o", "--exec=touch stolen", "--remote=."])
def test_no_source_is_an_option_of_git(
    option: str, old: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    write(old[:1], tmp_path / "results")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(BenchError, match="neither a results folder nor a git revision"):
        compare(option, "HEAD")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    "member",
    [
        {"name": "../stolen", "type": tarfile.REGTYPE},
        {"name": "results/link", "type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"name": "results/link", "type": tarfile.LNKTYPE, "linkname": "../../stolen"},
        {"name": "results/pipe", "type": tarfile.FIFOTYPE},
    ],
    ids=lambda member: f"{member['name']} {member.get('linkname', '')}".strip(),
)
def test_an_archive_cannot_leave_its_folder(
    member: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as files:
        info = tarfile.TarInfo(member["name"])
        info.type, info.linkname = member["type"], member.get("linkname", "")
        files.addfile(info)
    monkeypatch.setattr(comparison, "_git", lambda *arguments: archive.getvalue())
    with pytest.raises(BenchError, match="results/ of 'HEAD' cannot be read"):
        compare("HEAD", "HEAD")


def test_errors_name_the_fix(old: list[Record], tmp_path: Path) -> None:
    write(old, tmp_path / "a")
    others = [replace(r, cell=replace(r.cell, model="another")) for r in old]
    write(others, tmp_path / "b")
    for a, b, fix in (
        ("nowhere", tmp_path / "a", "'nowhere' is neither a results folder nor a git revision"),
        (tmp_path / "a", tmp_path / "b", "no cell is in both .* same models, tasks and methods"),
    ):
        with pytest.raises(BenchError, match=fix):
            compare(str(a), str(b))
