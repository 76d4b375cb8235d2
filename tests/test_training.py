"""The training loop: it resumes, can be stopped at any time, and several processes train as one."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from torch import nn

from bench.cli import outcome
from bench.training.checkpoints import ABOUT, TrainingError, folders
from bench.training.loop import Job, Settings, accelerator, fit, rate_factor
from recipes.__main__ import app
from recipes.phases import Phase, Rates, Scratch, optimizers, train_phases

STEPS = 20


class Tiny:
    """A linear model that learns sums; `before` is called ahead of each step."""

    def __init__(self, out: Path, before: Callable[[int], None] = lambda step: None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.x = torch.randn(64, 4)
        self.settings = Settings(out).begun()
        self.before = before

    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        self.before(step)
        x = self.x[torch.randint(64, (16,), generator=rng)]
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean()

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            error = (self.model(self.x) - self.x.sum(1, keepdim=True)).square().mean()
        return {"error": float(error)}

    def fit(self, **changes: object) -> dict[str, float]:
        opts = optimizers(self.model, Rates(other=0.05))
        job = Job(self.model, self.loss, STEPS, opts, self.evaluate, warmup=2, **changes)  # type: ignore[arg-type]
        return fit(job, self.settings, evaluate_every=5)


def dies_at(stop: int) -> Callable[[int], None]:
    def before(step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    return before


def test_training_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncut = Tiny(tmp_path / "uncut")
    error = uncut.evaluate()["error"]
    assert uncut.fit()["error"] < 0.5 * error
    monkeypatch.setattr("bench.training.loop.SAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        Tiny(tmp_path / "cut", dies_at(7)).fit()
    cut = Tiny(tmp_path / "cut")
    cut.fit()
    for a, b in zip(uncut.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("uncut", "cut")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 6  # 3 evaluations, two losses, the end


def test_a_training_before_it_may_have_run_on_another_device() -> None:
    accelerator("cpu")
    PartialState().device = torch.device("cuda")  # as a training there leaves it
    assert accelerator("cpu").device == torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_step_saves_it_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    def before(step: int) -> None:
        if step == 3:
            signal.raise_signal(number)

    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        Tiny(tmp_path, before).fit()
    assert handlers == [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    steps: list[int] = []
    Tiny(tmp_path, steps.append).fit()
    assert steps[0] == 4 and len(steps) == STEPS - 4


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def before(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # a shell starts what runs in its background with the signal ignored
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tiny(tmp_path, before).fit()
    finally:
        signal.signal(signal.SIGINT, outer)
    assert not folders(tmp_path)


def test_only_complete_checkpoints_are_resumed_and_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.loop.SAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        Tiny(tmp_path, dies_at(5)).fit()
    (folder,) = folders(tmp_path)
    assert json.loads((folder / ABOUT).read_text())["step"] == 5
    (tmp_path / "checkpoint-00000006").mkdir()  # killed while it wrote this one
    steps: list[int] = []
    Tiny(tmp_path, steps.append).fit()
    assert steps[0] == 5
    assert [path.name for path in folders(tmp_path)] == [f"checkpoint-{STEPS:08d}"]


def test_a_loss_that_is_not_a_number_is_one_clear_line(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    tiny.x[:] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan at step 0: try a smaller --rate"):
        tiny.fit()


def test_learning_rate_warms_up_stays_and_falls() -> None:
    factors = [rate_factor(step, 4, 10, 20) for step in range(21)]
    assert factors[0] == 0.25
    assert factors[5] == factors[10] == 1.0
    assert factors[15] == 0.5
    assert factors[20] == 0.0


def test_a_recipes_phases_come_one_after_the_other_and_see_every_image(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    seen: list[tuple[int, list[int]]] = []

    def loss(indices: torch.Tensor, pixels: int, rng: torch.Generator) -> torch.Tensor:
        seen.append((pixels, indices.tolist()))
        return model(torch.ones(1, 1)).square().sum()  # type: ignore[no-any-return]

    phases = [Phase(8, 1, 4), Phase(16, 2, 8)]
    train_phases(Scratch(tmp_path).begun(), model, 16, loss, dict, phases, Rates())
    assert [pixels for pixels, _ in seen] == [8] * 4 + [16] * 4
    for steps in (seen[:4], seen[4:6], seen[6:]):
        assert sorted(i for _, indices in steps for i in indices) == list(range(16))
    assert seen[4][1] != seen[6][1]  # each pass has its own order


def test_matrices_inside_blocks_are_trained_by_muon_and_known_parts_at_a_lower_rate() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)]), "begun": nn.Linear(2, 2)})
    muon, adamw = optimizers(model, Rates(known=("begun",)))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(2, 2)]
    rates = [(group["lr"], len(group["params"])) for group in adamw.param_groups]
    assert rates == [(1e-3, 1), (pytest.approx(3e-4), 2)]


def test_an_unknown_recipe_names_the_near_miss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes", "vit-fashon"])
    assert outcome(app, "python -m recipes") == 2
    assert "did you mean 'vit-fashion'" in capsys.readouterr().err
