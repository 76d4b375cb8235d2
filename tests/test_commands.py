"""Commands that are forks of a process with the libraries are as those of a fresh interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Server

SHOW = """
import json, os, sys
print(json.dumps([__name__, sys.argv, sys.path, os.getcwd(), sorted(os.environ), sys.stdin.read()]))
print("said", file=sys.stderr)
"""


@pytest.mark.parametrize("how", ["script", "code", "module"])
def test_a_command_begins_as_one_of_a_fresh_interpreter(
    how: str, tmp_path: Path, commands: Server
) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    ways = {"script": ["show.py"], "code": ["-c", SHOW], "module": ["-m", "show"]}
    env = {**os.environ, "PYTHONPATH": f"{tmp_path / 'one'}:{tmp_path / 'two'}", "NEW": "1"}
    command = [*ways[how], "a", "--b"]
    fresh = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    forked = commands.run(*command, cwd=tmp_path, env=env)
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (0, "said\n")
    assert json.loads(forked.stdout) == json.loads(fresh.stdout)


@pytest.mark.parametrize(
    ("code", "returns", "says"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        (f"import os; os.kill(os.getpid(), {signal.SIGTERM})", -signal.SIGTERM, ""),
    ],
)
def test_its_end_is_told(code: str, returns: int, says: str, commands: Server) -> None:
    done = commands.run("-c", code)
    assert done.returncode == returns and done.stderr.endswith(says)


def test_the_libraries_are_there_and_nothing_of_the_project(commands: Server) -> None:
    done = commands.run("-c", "import sys; print(*sys.modules)")
    rooms = {name.partition(".")[0] for name in done.stdout.split()}
    assert "torch" in rooms and "transformers" in rooms
    assert not rooms & {"bench", "methods", "crossget", "recipes", "conftest"}


def test_commands_run_side_by_side_and_know_nothing_of_each_other(commands: Server) -> None:
    waiting = commands.start("-c", "import sys, time; sys.probe = 1; time.sleep(60)")
    done = commands.run("-c", "import sys; print(hasattr(sys, 'probe'))")
    assert done.stdout == "False\n"
    os.kill(waiting.process, signal.SIGKILL)
    assert waiting.wait().returncode == -signal.SIGKILL


def test_what_it_prints_is_no_file_whose_size_is_limited(commands: Server) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); "
    done = commands.run("-c", limit + "print('x' * 200_000)")
    assert (done.returncode, len(done.stdout)) == (0, 200_001)
