"""The walls between the rooms: who may import whom, and what an import may do.

1. A method file (`methods/*.py`) imports the standard library, torch and `bench.core`;
   `methods/crossget.py` also imports `crossget`. Nothing else, not even inside a function.
2. `crossget/` imports the standard library, torch, safetensors, itself, and of the harness
   `bench.core` alone.
3. Report code (`bench/report/`, `bench/records/`) never imports torch or what needs it.
4. No adapter knows a method: it imports none and contains no method's name.
5. `import bench` and `run_bench.py --help` do not import torch, transformers or timm; what there
   is to name (`list`) is found without the two latter.
6. Importing any package of the project changes no global state.

Imports for type checkers only (`if TYPE_CHECKING:`) are free.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("bench", "crossget", "methods")
OPTIONAL = ("accelerate", "lmms_eval", "onnx", "peft", "ray", "resvg_py", "submitit")  # extras
HEAVY = ("torch", "torchvision", "transformers", "timm", "datasets", "fvcore")
LARGE = ("transformers", "timm", "datasets", "fvcore")  # seconds, where torch takes one
# Names of methods that are also plain words of the model libraries: no sign of knowing the method.
PLAIN_WORDS = {"none", "random", "pool", "downsample"}
# Where each kind of syntax node keeps a name or a text.
WORDS = {
    ast.Name: "id",
    ast.Attribute: "attr",
    ast.arg: "arg",
    ast.keyword: "arg",
    ast.FunctionDef: "name",
    ast.ClassDef: "name",
    ast.Constant: "value",
}


def parse(path: Path) -> ast.Module:
    """The file's syntax tree, without what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, at any depth."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(parse(path)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                base = ".".join([*above, *([module] if module else [])])
                for alias in names:  # the module bench.core, or a thing out of it
                    whole = f"{base}.{alias.name}"
                    yield whole if is_module(whole) else base
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(node.func).endswith(("import_module", "__import__")):
                    yield name


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def trespasses(paths: list[Path], allowed: set[str]) -> list[str]:
    allowed = allowed | set(sys.stdlib_module_names)
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imports(path)
        if not within(module, allowed)
    ]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_methods_import_only_the_core_and_the_registry() -> None:
    own = ROOT / "methods" / "crossget.py"
    others = [path for path in sorted(ROOT.glob("methods/**/*.py")) if path != own]
    assert others
    allowed = {"torch", "methods", "bench.core"}
    assert trespasses(others, allowed) == []
    assert trespasses([own], allowed | {"crossget"}) == []


def test_crossget_knows_only_the_core() -> None:
    allowed = {
        "torch",
        "safetensors",
        "crossget",
        "bench.core",
        "bench.core.registry",
        "bench.core.errors",
    }
    assert trespasses(sorted(ROOT.glob("crossget/**/*.py")), allowed) == []


def report_files() -> list[Path]:
    alone = [ROOT / "bench" / "records" / name for name in ("record.py", "store.py")]
    return [*sorted(ROOT.glob("bench/report/**/*.py")), *alone]


def test_report_code_never_imports_torch() -> None:
    found = [(path.name, m) for path in report_files() for m in imports(path)]
    assert [(name, module) for name, module in found if within(module, set(HEAVY))] == []


def test_report_runs_without_torch() -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in report_files()]
    names = [m.removesuffix(".__init__") for m in modules if not m.endswith("__main__")]
    run(
        "-c",
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        f"        assert name.split('.')[0] not in {HEAVY!r}, name\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {names!r}: importlib.import_module(name)\n",
    )


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("bench/engine/families/*.py")), ids=lambda p: p.stem
)
def test_no_adapter_names_a_method(path: Path) -> None:
    names = {p.stem for p in ROOT.glob("methods/*.py")} - PLAIN_WORDS - {"__init__"}
    assert not [module for module in imports(path) if within(module, {"methods", "crossget"})]
    for node in ast.walk(parse(path)):
        word = getattr(node, WORDS[type(node)]) if type(node) in WORDS else None
        assert word not in names, f"line {getattr(node, 'lineno', '?')} names the method {word!r}"


HELP = """
import runpy
sys.argv = ["run_bench.py", "--help"]
try:
    runpy.run_path("run_bench.py", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
"""


MODELS = """
from bench.models import catalogue, load
catalogue.check_name("clip-vit-base-patch16", random_weights=True)
assert "embedded:clip-emoji@none" in catalogue.listing()
"""


LISTS = """
from bench.runs.options import listing
for what in ("models", "tasks", "profiles"):
    listing(what)
"""


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import bench", HEAVY),
        ("import bench.cli.app", HEAVY),
        (HELP, HEAVY),
        (LISTS, LARGE),
        (MODELS, LARGE),
    ],
    ids=("bench", "bench.cli.app", "--help", "list", "names of models"),
)
def test_starts_without_the_heavy_libraries(code: str, light: tuple[str, ...]) -> None:
    check = f"loaded = [m for m in {light!r} if m in sys.modules]\nassert not loaded, loaded"
    run("-c", f"import sys\n{code}\n{check}")


def test_importing_the_packages_changes_nothing() -> None:
    files = [path for package in OURS for path in ROOT.glob(f"{package}/**/*.py")]
    known = {*OURS, *OPTIONAL, *sys.stdlib_module_names}
    modules = {module for path in files for module in imports(path)}
    run("tests/global_state.py", *sorted(m for m in modules if m.split(".")[0] not in known))
