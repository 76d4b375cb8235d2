"""What the tests of README and docs/ share: taking pages apart, and running the code in them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
RUNNER = """
import json, sys
for page, code in json.load(open(sys.argv[1])).items():
    print(page)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
"""


def links(text: str) -> list[str]:
    """The targets of a page's links, those to other sites left out."""
    return LINK.findall(text)


def run_python(pages: Mapping[str, str], folder: Path) -> str:
    """Run each page's Python, all its blocks in turn, in one process; return what it prints."""
    code = {page: "\n".join(PYTHON.findall(text)) for page, text in pages.items()}
    code = {page: blocks for page, blocks in code.items() if blocks}
    assert code, "these pages have no Python"
    file = folder / "pages.json"
    file.write_text(json.dumps(code), encoding="utf-8")
    command = [sys.executable, "-c", RUNNER, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
