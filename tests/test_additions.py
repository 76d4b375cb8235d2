"""What an addition costs: each test makes its files in a copy of the project and counts them.

A method, a task, a table, a figure: one file. A model family of a known kind: one line; of a new
kind: one file that finds its tokens, and one that knows its names. Another distribution adds a task
by entry point, without touching the project at all. What is added has to work through the command
line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Server

import bench
from bench.core.errors import Unsupported

METHOD = '''"""Keeps the first tokens: a baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.core import Plan, Reducer, Site, register


@register("first", source="this test")
@dataclass(frozen=True)
class First(Reducer):
    """Keeps the first tokens of a sequence.

    Departures: none.
    """

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the N - r first tokens, the protected ones among them."""
        last = site.protect.long().argsort(dim=1, descending=True, stable=True)
        return Plan(last[:, : site.x.shape[1] - r].sort(1).values)
'''

TASK = '''"""Labels by a rule: is a picture of Fashion-MNIST bright?"""

from __future__ import annotations

from bench.assets import embedded
from bench.tasks import Task, task
from bench.tasks.base import hash_of
from bench.tasks.classification import Classification
from bench.tasks.pictures import Arrays


@task("bright", "classification of 2,000 images by whether they are bright")
def bright() -> Task:
    """Return the embedded images, labelled by their mean."""
    images, _ = embedded.fashion_test()
    labels = [int(image.mean() > 128) for image in images]
    return Classification("bright", hash_of(labels), Arrays(images), labels, 10)
'''

FAMILY = '    "ViTMSNModel": _VIT_MODEL,\n'

TOWER = '''"""Adapter for the toy: a plain Transformer on the patches of an image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.engine.families import Adapter
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower


class ToyBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict()
        self.attn["qkv"], self.attn["out"] = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def attend(self, x: Tensor, run: Run | None) -> Tensor:
        B, N, C = x.shape
        qkv = self.attn["qkv"](self.before(x)).reshape(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scale = q.shape[-1] ** -0.5
        if run is None:
            y = sdpa(q, k, v, None, scale)
        else:
            y = run.attention(q, k, v, None, scale, sdpa, fused=True)
        return x + self.attn["out"](y.transpose(1, 2).reshape(B, N, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x, None)
        return x + self.mlp(self.after(x))


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Toy(nn.Module):
    """Patches of 4 pixels, and a few blocks; every token is a patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(ToyBlock(width, 2) for _ in range(3)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.blocks(self.embed(pixel_values).flatten(2).transpose(1, 2)).mean(1)


class ToyAdapter(Adapter):
    """The toy, by its class."""

    supports, classes = ("the toy",), ("Toy",)

    def towers(self, model: Any) -> dict[str, Tower]:
        """The one vision tower."""
        return {"vision": ToyTower(model)}


class ToyTower(Tower):
    """Its blocks."""

    pass_class, name = Pass, "vision"
    prefix = n_protected = 0
    attn_parts, mlp_parts = ("before", "attn"), ("after", "mlp")

    def __init__(self, model: Any) -> None:
        self.blocks = model.blocks

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The block's own, with the sizes of the tokens."""
        return block.attend(x, run)

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Nothing but the blocks is reduced."""
        yield
'''

SOURCE = '''"""`toy:WIDTH`: a model that is made on the spot."""

from __future__ import annotations

from dataclasses import dataclass

from bench.models.catalogue import Source


@dataclass(frozen=True)
class ToySource(Source):
    """A toy of some width, with random weights."""

    @classmethod
    def take(cls, name):
        return cls(name) if name.startswith("toy:") else None

    @classmethod
    def listing(cls):
        return {"toy:WIDTH": "a toy of that width"}

    def build(self, random_weights, seed):
        import torch

        from bench.engine.families.toy import Toy
        from bench.models.loaded import Encoder

        torch.manual_seed(seed)
        model = Toy(int(self.name.partition(":")[2])).eval()
        return Encoder(self.name, model, (16, 16), provenance={"weights": "random"})
'''

TABLE = '''"""Show the memory of each method."""

from bench.report.data.makers import makes
from bench.report.tables.table import Column, Table, words


@makes("table", 65)
def memory_table(frames, group):
    """Return one row a method."""
    columns = [words("Method", "method"), Column("peak MiB", "peak_mib", digits=0)]
    return Table(f"{group}--peaks", "Peaks of memory.", columns, frames.by_group[group])
'''

FIGURE = '''"""Draw the memory of each method."""

from bench.report.data.makers import makes
from bench.report.figures.plots import Plot


@makes("figure", 66)
def memory_plot(frames, group):
    """Yield one bar a method."""
    rows = frames.by_group[group]

    def draw():
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots().barh([row["method"] for row in rows], [row["peak_mib"] for row in rows])
        return figure

    yield Plot(f"{group}--peaks", "Peaks of memory, drawn.", draw)
'''

# run_bench.py, without the fresh process for memory and without taking timings again that other
# tests disturb: test_cli.py has one run with all of it real.
DRIVER = """
import runpy, sys
if "run" in sys.argv:
    from bench.measure import blocks
    from bench.measure.memory import PeakMemory
    from bench.runs import session
    blocks.PAUSES_S = ()
    session.peak = lambda *a, **k: PeakMemory(2, 1, 1, "fake")
runpy.run_path("run_bench.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Copy:
    """A copy of the project, to which things are added."""

    root: Path
    commands: Server

    def run(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line in the copy."""
        paths = os.pathsep.join(filter(None, (str(self.root), path)))
        env = {**os.environ, "PYTHONPATH": paths}
        return self.commands.run("-c", DRIVER, *arguments, cwd=self.root, env=env)

    def files(self) -> dict[str, bytes]:
        """Return what the files of the project hold."""
        kept = ("bench", "methods", "crossget")
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for room in kept
            for path in (self.root / room).rglob("*.py")
        }


@pytest.fixture
def project(repo: Path, tmp_path: Path, commands: Server) -> Copy:
    """A copy; the assets, which are large, stay where they are."""
    root = tmp_path / "project"
    for room in ("bench", "methods", "crossget"):
        skipped = shutil.ignore_patterns("assets", "*.pyc.*")  # compiled already, or being so
        shutil.copytree(repo / room, root / room, ignore=skipped)
    (root / "bench" / "assets").symlink_to(repo / "bench" / "assets")
    shutil.copy(repo / "run_bench.py", root)
    return Copy(root, commands)


def distribution(folder: Path, group: str, module: str, text: str) -> str:
    """Make an installed distribution with one module and one entry point; return its folder."""
    info = folder / "addition-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: addition\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")
    return str(folder)


def measured(
    project: Copy, *arguments: str, model: str = "embedded:vit-fashion", path: str = ""
) -> dict[str, dict[str, object]]:
    """Run a model and return its records by label."""
    done = project.run(
        "run", "--model", model, "--limit", "16", "--batch", "1", "--seconds", "0.05",
        "--profile", "cpu", "--machine", "m", *arguments, path=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = (project.root / "results").rglob("*.json")
    records = [json.loads(file.read_text()) for file in files]
    return {record["cell"]["label"]: record for record in records}


def test_a_method_is_one_file(project: Copy) -> None:
    before = project.files()
    (project.root / "methods" / "first.py").write_text(METHOD)
    records = measured(project, "--method", "first", "--r", "2", "--task", "fashion-mnist")
    assert set(records) == {"none", "first r=2"}
    assert records["first r=2"]["status"] == "ok", records["first r=2"]["reason"]
    assert "Keeps the first tokens" in project.run("list", "methods").stdout
    assert set(project.files().items() ^ before.items()) == {("methods/first.py", METHOD.encode())}


def test_a_task_is_one_file(project: Copy) -> None:
    before = project.files()
    (project.root / "bench" / "tasks" / "bright.py").write_text(TASK)
    assert "whether they are bright" in project.run("list", "tasks").stdout
    records = measured(project, "--method", "none", "--task", "bright")
    assert scored(records["none"]) and "task_source_sha256" not in provenance(records["none"])
    assert set(project.files().items() ^ before.items()) == {
        ("bench/tasks/bright.py", TASK.encode())
    }


def test_a_task_of_another_distribution_is_an_entry_point(project: Copy, tmp_path: Path) -> None:
    before = project.files()
    path = distribution(tmp_path / "site", "crossget_bench.tasks", "brightness", TASK)
    assert "whether they are bright" in project.run("list", "tasks", path=path).stdout
    first = measured(project, "--method", "none", "--task", "bright", path=path)["none"]
    assert scored(first)
    # its code is no measuring code of ours: a change of it is in the key all the same
    (tmp_path / "site" / "brightness.py").write_text(TASK.replace("> 128", "> 127"))
    again = measured(project, "--method", "none", "--task", "bright", path=path)["none"]
    assert provenance(again)["task_source_sha256"] != provenance(first)["task_source_sha256"]
    assert again["key"] != first["key"] and project.files() == before
    unknown = project.run("run", "--model", "embedded:vit-fashion", "--task", "bright")
    assert unknown.returncode == 2 and "unknown task 'bright'" in unknown.stderr


def test_a_family_of_a_known_kind_is_one_line(project: Copy, tmp_path: Path) -> None:
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.ViTMSNConfig(
        **shape, num_attention_heads=2, image_size=16, patch_size=4, architectures=["ViTMSNModel"]
    )
    folder, model = tmp_path / "msn", transformers.ViTMSNModel(config)
    model.save_pretrained(folder)
    with pytest.raises(Unsupported, match="no adapter for"):
        bench.adapter_for(model)
    before = project.files()
    file = project.root / "bench" / "engine" / "families" / "hf.py"
    head, start, rest = file.read_text().partition("FAMILIES = {\n")
    file.write_text(head + start + FAMILY + rest)
    arguments = ("--method", "tome", "--r", "2", "--task", "cost")
    records = measured(project, *arguments, model=str(folder))
    assert saves(records["tome r=2"])
    (changed,) = {name for name, _ in project.files().items() ^ before.items()}
    assert changed == "bench/engine/families/hf.py"


def test_a_new_kind_is_a_file_for_its_tokens_and_one_for_its_names(project: Copy) -> None:
    before = project.files()
    (project.root / "bench" / "engine" / "families" / "toy.py").write_text(TOWER)
    (project.root / "bench" / "models" / "sources" / "toy.py").write_text(SOURCE)
    records = measured(project, "--method", "tome", "--r", "2", "--task", "cost", model="toy:32")
    assert saves(records["tome r=2"])
    assert "a toy of that width" in project.run("list", "models").stdout
    assert set(project.files()) - set(before) == {
        "bench/engine/families/toy.py", "bench/models/sources/toy.py"
    }  # fmt: skip
    assert before.items() <= project.files().items()


def test_a_table_is_one_file_and_so_is_a_figure(project: Copy, repo: Path) -> None:
    before = project.files()
    (project.root / "bench" / "report" / "tables" / "peaks.py").write_text(TABLE)
    (project.root / "bench" / "report" / "figures" / "peaks.py").write_text(FIGURE)
    records = project.root / "results" / "m" / "quick"
    records.mkdir(parents=True)
    for label in ("none", "tome-r=21"):
        for file in repo.glob(f"results/*/quick/*--emoji-clutter--{label}--*.json"):
            shutil.copy(file, records)
    done = project.run("report", "--format", "markdown", "--figures", "1", "--out", "report")
    assert done.returncode == 0, done.stderr
    text = (project.root / "report" / "report.md").read_text()
    assert "Peaks of memory." in text and "Peaks of memory, drawn." in text
    (figure,) = (project.root / "report").rglob("*--peaks.png")
    assert figure.stat().st_size > 1000
    assert set(project.files()) - set(before) == {
        "bench/report/tables/peaks.py", "bench/report/figures/peaks.py"
    }  # fmt: skip
    assert before.items() <= project.files().items()


def saves(record: dict[str, object]) -> bool:
    assert record["status"] == "ok", record["reason"]
    cost = record["cost"]
    return isinstance(cost, dict) and cost["macs"]["total"] < cost["macs"]["baseline_total"]


def scored(record: dict[str, object]) -> bool:
    assert record["status"] == "ok", record["reason"]
    accuracy = record["accuracy"]
    return isinstance(accuracy, dict) and accuracy["metrics"]["top1"]["n"] == 16


def provenance(record: dict[str, object]) -> dict[str, str]:
    hashes = record["provenance"]
    assert isinstance(hashes, dict)
    return hashes
