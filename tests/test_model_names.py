"""Every function that takes a model's name agrees on what the name means."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import folders
import pytest

from bench.cli import app
from bench.core.errors import BenchError
from bench.measure.memory import PeakMemory
from bench.models import catalogue
from bench.models.catalogue import source_of
from bench.models.files import hash_files
from bench.models.sources.embedded import Embedded
from bench.models.sources.hf import HuggingFace
from bench.models.sources.timm import Timm
from bench.models.sources.tuned import Tuned
from bench.records.record import Record
from bench.runs import session

TIMM = "test_vit"  # timm's smallest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    (tmp_path / "deep").mkdir()
    save_file(timm.create_model(TIMM).state_dict(), tmp_path / "deep" / "w.safetensors")
    return tmp_path / "deep" / "w.safetensors"


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, model: str, *more: str) -> int:
    """Run `run_bench.py run --model MODEL` in this process; returns the exit code."""
    command = [
        "run_bench.py", "run", "--model", model, "--results", str(folder), "--method", "tome",
        "--r", "2", "--batch", "1", "--seconds", "0.05", "--profile", "cpu", "--machine", "m",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*command, *more])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("form", ["absolute", "relative", "home"])
def test_weights_of_timm_from_a_file_run_to_a_record(
    form: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if form == "home":  # the process that measures memory may be older than this home
        monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
    file = {
        "absolute": str(weights),
        "relative": "deep/w.safetensors",
        "home": "~/deep/w.safetensors",
    }
    name = f"timm:{TIMM}@{file[form]}"
    assert call(monkeypatch, tmp_path / "results", name, "--task", "cost") == 0
    records = [Record.read(f) for f in (tmp_path / "results").rglob("*.json")]
    assert {record.cell.label for record in records} == {"none", "tome r=2"}
    for record in records:
        assert (record.status, record.cell.model) == ("ok", name)
        assert record.provenance["weights"] == "path" and record.cost.macs
    assert catalogue.type_of(name) == ""
    assert catalogue.learned(name) == {}
    assert catalogue.fingerprint(name) == hash_files([weights])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.unlink(), r"weights file .*w.safetensors is missing"),
        (lambda f: f.write_bytes(f.read_bytes()[:999]), r"w.safetensors is truncated"),
        (lambda f: f.write_bytes(bytes([2, *[0] * 7]) + b"[]"), r"no safetensors file"),
    ],
)
def test_a_file_that_does_not_serve_is_one_line(
    change: Any,
    message: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(weights)
    assert call(monkeypatch, tmp_path / "results", f"timm:{TIMM}@{weights}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0])


@pytest.mark.parametrize(
    "name",
    ["some/deep/folder", "/no/such/folder", "./nowhere", "~/nowhere", "hf:/no/such", "a/b@main"],
)
def test_what_is_no_folder_and_no_id_of_the_hub_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path / "results", name) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no model folder" in lines[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"timm:{TIMM}@", "names no file behind its @"),
        (f"timm:{TIMM}.r160_in2k@w.safetensors", r"unknown timm model .*test_vit.r160_in1k"),
        ("embedded:vit-fashion@none", "unknown model .*embedded:clip-emoji@none"),
        ("hf:a:b", "unknown model"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        catalogue.check_name(name)


def test_kinds_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "vit-base-patch16-224"  # as a known shape is called
    folder.mkdir()
    for name in (str(folder), f"hf:{folder}", "~/vit-base-patch16-224"):
        source = source_of(name)
        assert isinstance(source, HuggingFace) and source.folder == folder
    about = {"model": "embedded:blip-vqa-emoji", "method": "none", "budget": {}, "params": {}}
    (folder / "training.json").write_text(json.dumps(about))
    for name in (str(folder), f"hf:{folder}", "~/vit-base-patch16-224"):
        assert source_of(name) == Tuned(name, folder, False)
        assert catalogue.type_of(name) == "blip"
    assert source_of("hf:org/name") == HuggingFace("hf:org/name", "org/name", None)
    assert source_of("timm:a@b@c") == Timm("timm:a@b@c", "a", Path("b@c"))
    assert isinstance(source_of("embedded:vit-fashion"), Embedded)


def test_a_file_in_sources_is_all_that_a_new_kind_of_name_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from bench.models.catalogue import Source, source_of\n"
        "class Mine(Source):\n"
        "    @classmethod\n"
        "    def take(cls, name):\n"
        "        return cls(name) if name == 'mine:vit' else None\n"
        "    @classmethod\n"
        "    def listing(cls):\n"
        "        return {'mine:vit': 'my own'}\n"
        "    def build(self, random_weights, seed):\n"
        "        return source_of('timm:vit_tiny_patch16_224').build(random_weights, seed)\n"
    )
    sources = importlib.import_module("bench.models.sources")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    catalogue.sources.cache_clear()
    try:
        assert catalogue.listing()["mine:vit"] == "my own"
        assert catalogue.load("mine:vit", random_weights=True).random
        assert catalogue.fingerprint("mine:vit") is None
    finally:
        catalogue.sources.cache_clear()
        sys.modules.pop("bench.models.sources.mine")


def test_a_folder_s_type_is_its_own_and_not_that_of_its_name(tmp_path: Path) -> None:
    folder = folders.clip(tmp_path / "vit-base-patch16-224")
    assert catalogue.type_of(str(folder)) == catalogue.type_of(f"hf:{folder}") == "clip"
    assert catalogue.fingerprint(f"hf:{folder}") == catalogue.fingerprint(str(folder)) is not None
    assert catalogue.type_of("google/vit-base-patch16-224") == "vit"
    assert catalogue.type_of("hf:vit-base-patch16-224") == "vit"
