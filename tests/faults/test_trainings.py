"""A training that is killed at each step of its checkpoints, or finds the disk full."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import Server

# In a process of its own that never trains itself: after that its forks could not.
SCRIPT = """
import json, shutil, sys
from pathlib import Path

import accelerate, accelerate.checkpointing  # in forks it would take seconds each time
import torch, torch._dynamo
from bench.training import loop
import dying, test_training
from test_training import Tiny

loop.SAVE_SECONDS, test_training.STEPS = -1.0, 2
root = Path(sys.argv[1])

def weights(name):
    tiny = Tiny(root / name)
    tiny.fit()
    torch.save(tiny.model.state_dict(), root / f"{name}.pt")
    (root / f"{name}.json").write_text(json.dumps(sorted(p.name for p in (root / name).iterdir())))

def trained(name):
    ended = dying.forked(lambda: weights(name))
    assert ended.code == 0, ended.errors
    tensors = torch.load(root / f"{name}.pt", weights_only=True)
    return tensors, (root / f"{name}.json").read_text()

uncut, files = trained("uncut")
log = (root / "uncut/log.jsonl").read_text()
cut, steps, faults = root / "cut", 0, []
for step in dying.dying(lambda: Tiny(cut).fit(), cut, every=2):
    steps += 1
    tensors, after = trained("cut")
    if not all(torch.equal(tensors[key], uncut[key]) for key in uncut):
        faults.append(f"step {step}: other weights")
    if after != files:
        faults.append(f"step {step}: {after}, not {files}")
    if (cut / "log.jsonl").read_text() != log:
        faults.append(f"step {step}: another log")
    shutil.rmtree(cut)
full = []
for size in (0, 2000):
    ended = dying.without_room(lambda: Tiny(root / "full").fit(), size)
    left = [path.name for path in (root / "full").glob(".*")]
    full.append([ended.code, ended.errors.splitlines(), left])
print(json.dumps({"steps": steps, "faults": faults, "full": full}))
"""


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, repo: Path, commands: Server
) -> dict[str, list[object]]:
    places = [repo, repo / "tests", repo / "tests/faults"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    done = commands.run("-c", SCRIPT, tmp_path_factory.mktemp("trainings"), env=env)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_training_killed_at_any_step_of_a_write_ends_as_one_that_was_not(
    told: dict[str, list[object]],
) -> None:
    assert not told["faults"] and told["steps"] > 8  # type: ignore[operator]


def test_a_training_without_room_is_one_line(told: dict[str, list[object]]) -> None:
    for code, lines, left in told["full"]:  # type: ignore[misc]
        assert code == 2 and not left, lines
        (line,) = [line for line in lines if line.startswith("error: ")]
        assert "cannot write" in line and "full" in line and len(line) <= 300
        assert not any("Traceback" in line for line in lines)
