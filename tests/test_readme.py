"""The README says what is true: its table is current, its code runs, its paths exist.

Run as a script (`make readme`), this renews the method table.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- methods:begin[^>]*-->\n).*?(<!-- methods:end -->)", re.DOTALL)


def with_current_table(text: str) -> str:
    from bench.core import registry

    assert TABLE.search(text), "README.md has lost the markers of its method table"
    return TABLE.sub(lambda m: f"{m[1]}{registry.method_table()}\n{m[2]}", text)


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_method_table_is_current(text: str) -> None:
    assert with_current_table(text) == text, "run `make readme`"


def test_python_blocks_run(text: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    usage, new_method = blocks
    trial = (
        "with torch.inference_mode(), bench.reduced(model, 'largest', r=8):\n"
        "    n_in, n_out = bench.trace(model, images).tokens['vision'][0]\n"
        "assert (n_in, n_out) == (197, 189)\n"
    )
    script = tmp_path / "readme.py"
    script.write_text("\n".join([usage, new_method, trial]))
    command = [sys.executable, "-c", f"exec(open({str(script)!r}).read())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(197, 189)" in done.stdout


def test_make_targets_exist(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?\bmake ([a-z]+)\b", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target `make {target}`"


def test_links_lead_somewhere(text: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"


def test_tree_is_real(text: str) -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", text, re.DOTALL)
    assert tree
    for line in tree[1].splitlines():
        name = line.split()[0]
        parent = ROOT / "bench" if line.startswith("  ") else ROOT
        assert (parent / name).exists(), f"the tree shows {name}, which is not there"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    README.write_text(with_current_table(README.read_text(encoding="utf-8")), encoding="utf-8")
