"""Tokens of sample images: noted is what the pass did, and shown is what was noted."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.core.errors import BenchError
from bench.measure.memory import PeakMemory
from bench.records import fates
from bench.records.record import Record
from bench.records.store import Store
from bench.report import build
from bench.report.data import load
from bench.report.figures import plots, token_figure, token_maps
from bench.report.figures.token_figure import FADED, SCALE, painted, tokens_after

MODEL = "embedded:vit-fashion"


SUITE = """
models: [{name: "embedded:vit-fashion", tasks: [fashion-mnist]}]
methods:
  - none
  - {name: tome, r: [8, 16]}
  - {name: crossget, r: 16}
  - {name: topk, keep_rate: [0.7, 0.5]}
  - {name: evit, keep_rate: 0.5}
  - {name: random, keep_rate: 0.5}
  - {name: pool, keep_rate: 0.5}
  - {name: downsample, keep_rate: 0.5}
  - {name: patchmerger}
limit: 4
batch_sizes: [1]
latency_seconds: 0.05
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished cells of one model, and what they do with twelve images."""
    from bench.runs import runner, session, spec, tokens

    root = tmp_path_factory.mktemp("fates")
    (root / "quick.yaml").write_text(SUITE)
    suite, document = spec.load(str(root / "quick.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "no process of its own"))
        assert runner.run(suite, document, root / "results", quiet=True).ran == 11
    (folder,) = (root / "results").glob("*/quick")
    tokens.main([folder], 12)
    return folder


@pytest.fixture(scope="module")
def records(quick: Path) -> list[Record]:
    return load.read([quick])[0]


@pytest.fixture(scope="module")
def noted(quick: Path) -> list[fates.Fates]:
    return fates.read([quick])


def test_tokens_are_those_that_the_records_counted(
    noted: list[fates.Fates], records: list[Record]
) -> None:
    counts = {(r.cell.model, r.cell.label): r.cost.tokens["vision"] for r in records}
    assert {own.model for own in noted} == {model for model, _ in counts}
    seen = 0
    for own in noted:
        for cell in own.cells:
            counted = counts.pop((own.model, cell.label))
            aside = 2 if cell.method == "crossget" else 1  # class token, cross token
            for text in cell.maps:
                for layer, slots in zip(
                    cell.layers, fates.unpack(text, np.prod(own.grid)), strict=True
                ):
                    left = len(set(slots) - {fates.DROPPED})
                    assert left + aside == (counted[layer][1] if layer >= 0 else counted[0][0])
                    seen += 1
    assert not counts and seen > 500


def test_noting_follows_each_patch(records: list[Record], tmp_path: Path) -> None:
    from bench.runs.tokens import record_fates

    labels = ("none", "tome r=16", "topk keep_rate=0.5", "downsample keep_rate=0.5")
    own = [r for r in records if r.cell.label in labels]
    found = record_fates(own, 2)
    assert found is not None and found.grid == (14, 14) and found.depth == 12
    cells = {cell.label: cell for cell in found.cells}
    assert set(cells) == set(labels) and cells["none"].layers == []
    assert cells["none"].answers[0][0][0] in bench.assets.embedded.fashion_classes
    picture = Image.open(io.BytesIO(base64.b64decode(found.samples[0].png)))
    assert picture.size == (28, 28)
    # The very same pass, watched by `trace()`: who stands for whom at the end.
    loaded = bench.models.load(MODEL)
    task = bench.tasks.load("fashion-mnist")
    index = [task.prepared.pictures.name(i) for i in range(len(task))]
    images = torch.stack(
        [loaded.transform(task.prepared.pictures.open(index.index(s.name))) for s in found.samples]
    )
    with bench.reduced(loaded.model, "tome", r=16):
        source = bench.trace(loaded.model, images).source("vision")
    for sample, own_source in enumerate(source):
        tokens = tokens_after(12, cells["tome r=16"], sample, 196)
        assert (own_source.int().argmax(0)[1:].numpy() == tokens).all()
    assert fates.read([tmp_path]) == []
    (tmp_path / fates.FOLDER).mkdir()
    (tmp_path / fates.FOLDER / "a.json").write_text(found.to_json())
    assert fates.read([tmp_path]) == [found]


def test_the_command_and_the_page_after_it(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.cli import app

    folder = tmp_path / "box" / "few"
    folder.mkdir(parents=True)
    for label in ("none", "topk-keep_rate=0.7"):
        (file,) = quick.glob(f"embedded-vit-fashion--*--{label}--*.json")
        shutil.copy(file, folder)
    for command in (["tokens", str(folder), "--samples", "1"], ["report", str(folder)]):
        options = (
            ["--format", "html", "--out", str(tmp_path / "out")] if command[0] == "report" else []
        )
        monkeypatch.setattr("sys.argv", ["run_bench.py", *command, *options])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code
    written, page = map(Path, capsys.readouterr().out.split())
    assert written == folder / "tokens" / "embedded-vit-fashion--fashion-mnist.json"
    assert [cell.label for cell in fates.read([folder])[0].cells] == ["none", "topk keep_rate=0.7"]
    assert '"label":"topk keep_rate=0.7"' in page.read_text(encoding="utf-8")


def test_packing_is_lossless_and_small() -> None:
    slots = np.random.default_rng(0).integers(-1, 256, (8, 256))
    assert (fates.unpack(fates.pack(slots), 256) == slots).all()
    assert fates.unpack(fates.pack(slots[:0]), 256).shape == (0, 256)
    assert len(fates.pack(np.arange(256)[None].repeat(8, 0))) < 800


def test_soft_methods_say_so(noted: list[fates.Fates]) -> None:
    found = {cell.method: cell.soft for cell in noted[0].cells}
    assert found["evit"] is False and {m for m, soft in found.items() if soft} == {"patchmerger"}


def test_a_report_shows_the_cells_that_it_has(
    noted: list[fates.Fates], records: list[Record], quick: Path
) -> None:
    some = [r for r in records if r.cell.method in ("none", "tome")]
    (shown,) = token_maps.read([quick], some)
    assert [cell.label for cell in shown.cells] == ["none", "tome r=16", "tome r=8"]
    made = shown.cells[1].made
    fresh = [replace(r, provenance={**r.provenance, **made}) for r in some if r.cell.params]
    cells = {c["label"]: c for c in token_maps.for_page([shown], [*some[:1], *fresh])[0]["cells"]}
    assert cells["tome r=16"]["old"] is False
    stale = [replace(r, provenance={**r.provenance, "weights_sha256": "0"}) for r in some]
    assert all(c["old"] for c in token_maps.for_page([shown], stale)[0]["cells"])
    (plot,) = token_figure.plots([shown], stale)
    assert plot.caption.endswith("than the numbers were measured with: none, tome r=16.")
    assert "measured with" not in token_figure.plots([shown], fresh + some[:1])[0].caption


def test_records_beside_tokens_are_read_without_them(quick: Path, tmp_path: Path) -> None:
    store = Store(quick)
    store.read_all()
    assert store.problems == []
    (tmp_path / fates.FOLDER).mkdir()
    (tmp_path / fates.FOLDER / "x.json").write_text("{")
    with pytest.raises(BenchError, match=r"x\.json is not readable: .* run_bench\.py tokens"):
        fates.read([tmp_path])


def test_painting() -> None:
    tokens = np.array([[0, 0, 3], [-1, 5, 3]])
    image = np.zeros((2 * SCALE, 3 * SCALE, 3))
    result = painted(image, tokens)
    middle = result[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    assert (middle[0, 0] == middle[0, 1]).all() and (middle[0, 0] != middle[0, 2]).any()
    assert (middle[0, 2] == middle[1, 2]).all()
    assert middle[1, 0] == pytest.approx([0.9 * FADED] * 3) and middle[1, 1] == pytest.approx(
        [0] * 3
    )
    assert (result[0, 2 * SCALE - 1] == 1).all()  # between two groups
    assert (result[0, SCALE - 1] < 1).any()  # not within one


def test_figure_in_the_report(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = plots.save, list[Any]()

    def save(plot: plots.Plot, folder: Path) -> None:
        if plot.name.startswith("tokens_"):
            drawn.append(plot)
            real(plot, folder) if len(drawn) == 1 else None

    monkeypatch.setattr("bench.report.figures.plots.save", save)
    text = build([quick], tmp_path, formats=["markdown"]).read_text()
    assert [plot.name for plot in drawn] == ["tokens_embedded-vit-fashion--fashion-mnist"]
    assert f"](figures/{drawn[0].name}.png)" in text
    figure = drawn[0].draw()
    assert max(figure.get_size_inches() - (6.76, 9.5)) <= 0
    rows = {ax.get_ylabel().partition("\n")[0] for ax in figure.axes} - {""}
    assert figure.axes[0].get_ylabel() == "none"
    assert rows == {
        "none",
        *("crossget", "downsample", "evit", "pool", "random", "tome", "topk"),
        "patchmerger",
    }
    with Image.open(tmp_path / "figures" / f"{drawn[0].name}.png") as picture:
        assert picture.width == round(figure.get_size_inches()[0] * 150)
    svg = (tmp_path / "figures" / f"{drawn[0].name}.svg").read_text()
    pictures = re.findall(r'image/png;base64,([^"]*)', svg)
    tiles = [Image.open(io.BytesIO(base64.b64decode(data))) for data in pictures]
    assert len(tiles) == len(figure.axes) and {tile.mode for tile in tiles} == {"P"}
    shape = figure.axes[0].images[0].get_size()
    assert {tile.size for tile in tiles} == {shape[::-1]}  # each pixel as it is, not resampled


def test_strongest_leaves_the_fewest(noted: list[fates.Fates]) -> None:
    chosen = {cell.method: cell.label for cell in token_figure.strongest(noted[0])}
    assert chosen["tome"] == "tome r=16" and chosen["topk"] == "topk keep_rate=0.5"
    assert next(iter(chosen)) == "none"
