"""Fine-tuning with reduction on: what is trained is what is loaded, measured, and resumed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folders
import numpy as np
import pytest
import tiny
import torch
from commands import Command, Server
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench
from bench.cli import app
from bench.core.errors import BenchError
from bench.measure.memory import PeakMemory
from bench.models import adapters, catalogue, learning
from bench.models.loaded import Loaded
from bench.models.sources import tuned as model_tuned
from bench.records.record import Cell, Record
from bench.runs import checking, planning, runner, session, spec
from bench.training import finetune as finetuning
from bench.training import losses as task_losses
from bench.training import pairs
from bench.training.checkpoints import folders as checkpoints
from bench.training.finetune import Recipe, finetune
from bench.training.loop import Settings, accelerator
from bench.training.losses import contrastive_loss
from crossget import CrossTokens, clip_alignment_loss

BOTH = {"r": {"vision": 6, "text": 2}}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve noisy squares with their colour as caption: eight to train on, four to test on."""
    root, random, rows = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), []
    for i in range(12):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(np.array(colour) + random.integers(-99, 99, (32, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        split = "train" if i < 8 else "test"
        captions = [{"raw": f"{name} square"}, {"raw": name}]
        rows.append({"filename": f"{i}.png", "split": split, "sentences": captions})
    (root / "squares.json").write_text(json.dumps({"images": rows}))
    return f"karpathy:{root / 'squares.json'}"


Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def recipe(clip: Path, data: str) -> Make:
    """A recipe of six steps."""

    def make(method: str = "crossget", **changes: Any) -> Recipe:
        budget = {"crossget": BOTH, "tome": BOTH}.get(method, {})
        told = {"model": str(clip), "data": data, "epochs": 3.0, "batch": 4, "rate": 0.01}
        return Recipe(method=method, **{**told, "budget": budget, **changes})

    return make


@pytest.fixture(scope="module")
def tuned(recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with adapters and cross tokens."""
    out = tmp_path_factory.mktemp("tuned") / "crossget"
    finetune(recipe(rank=2), Settings(out))
    return out


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**tiny.inputs(model)).logits_per_image  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [0, 2])
def test_what_was_trained_is_what_is_loaded(
    rank: int, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    seen = []
    write = finetuning._write

    def spy(settings: Settings, recipe: Recipe, model: Any, *rest: Any) -> None:
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        seen.append(logits(model))
        write(settings, recipe, model, *rest)

    monkeypatch.setattr(finetuning, "_write", spy)
    before = catalogue.fingerprint(str(clip))
    finetune(recipe(rank=rank, epochs=10.0), Settings(tmp_path / "out"), "the command")
    loaded = catalogue.load(str(tmp_path / "out"), backend="eager")
    base = logits(catalogue.load(str(clip), backend="eager").model)
    error = (logits(loaded.model) - seen[0]).abs().max()
    learned = (seen[0] - base).abs().max()
    assert learned > 0.1
    assert error < 0.01 * learned if rank else error == 0
    assert catalogue.fingerprint(str(clip)) == before
    assert loaded.provenance["weights"] == "fine-tuned"
    assert loaded.provenance["sha256"] == catalogue.fingerprint(str(tmp_path / "out")) != before
    about = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (about["steps"], about["command"], about["rank"]) == (20, "the command", rank)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 10 and log[0]["loss"] > 0 and log[-1]["final"]
    assert about["losses"] == [[line["step"], line["loss"]] for line in log if "loss" in line]
    assert not checkpoints(tmp_path / "out")


def test_every_layers_cross_token_and_the_adapters_are_saved(tuned: Path) -> None:
    tables = load_file(tuned / "crossget.safetensors")
    shapes = {key: tuple(table.shape) for key, table in tables.items()}
    assert shapes == {"cross_tokens.vision": (4, 32), "cross_tokens.text": (3, 32)}
    assert all((table.abs().sum(1) > 0).all() for table in tables.values())
    adapters = load_file(tuned / "adapter.safetensors")
    assert {min(factor.shape) for factor in adapters.values()} == {2}


def test_a_learned_predictor_is_saved_and_used_again(recipe: Make, tmp_path: Path) -> None:
    finetune(recipe("dynamicvit"), Settings(tmp_path / "out"))
    predictor = load_file(tmp_path / "out" / "dynamicvit.safetensors")
    assert {key.split(".")[0] for key in predictor} == {"predictor"}
    loaded = catalogue.load(str(tmp_path / "out"))
    with session.apply(loaded, replace(cell(tmp_path / "out"), method="dynamicvit", params={})):
        own = logits(loaded.model)
    with bench.reduced(loaded.model, "dynamicvit", predictor="random"):
        assert not torch.equal(logits(loaded.model), own)


def test_adapters_begin_as_the_identity_and_a_file_of_them_does_what_they_did() -> None:
    model, plain = tiny.clip().eval(), tiny.clip().eval()
    plain.load_state_dict(model.state_dict())
    adapters.attach(model, rank=3, seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert torch.equal(logits(model), logits(plain))
    for name in trained:
        model.get_parameter(name).data.normal_(std=0.1)
    factors = adapters.factors(model)
    assert {key: tuple(f.shape) for key, f in factors.items()} == adapters.shapes(plain, 3)
    layers = sum(isinstance(m, torch.nn.Linear) for m in plain.modules())
    assert len(factors) == 2 * layers
    before = logits(plain)
    adapters.fold(plain, factors)
    error, change = (logits(plain) - logits(model)).abs().max(), (logits(plain) - before).abs()
    assert error < 0.01 * change.max()  # the file is in half precision


def test_layers_that_share_their_weight_get_no_adapter() -> None:
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5)})
    model["head"].weight = model["words"].weight  # type: ignore[assignment]
    model["other"] = torch.nn.Linear(4, 4)
    assert list(adapters.adapted(model)) == ["other"]


def test_adapters_begin_at_the_seed_of_the_training() -> None:
    first = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)  # loading a model may seed torch as well
        model = tiny.clip()
        adapters.attach(model, 2, seed)
        first.append(adapters.factors(model)["visual_projection.lora_a"])
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


class Batches:
    """Watches the batches of a training, and stops it before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[pairs.Batch] = []
        self.stop_at: int | None = None
        real = pairs.Files.batch

        def batch(files: pairs.Files, *rest: Any) -> pairs.Batch:
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(real(files, *rest))
            return self.seen[-1]

        monkeypatch.setattr(pairs.Files, "batch", batch)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    monkeypatch.setattr("bench.training.loop.SAVE_SECONDS", -1.0)
    return Batches(monkeypatch)


def interrupt(batches: Batches, recipe: Recipe, out: Path, steps: int) -> None:
    batches.stop_at = steps
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, Settings(out))
    assert not (out / "training.json").exists()  # no model yet
    batches.stop_at = None
    batches.seen.clear()


@pytest.mark.parametrize("rank", [0, 2])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    rank: int, recipe: Make, tmp_path: Path, batches: Batches
) -> None:
    finetune(recipe(rank=rank), Settings(tmp_path / "whole"))
    batches.seen.clear()
    interrupt(batches, recipe(rank=rank), tmp_path / "parts", 4)
    finetune(recipe(rank=rank), Settings(tmp_path / "parts"))
    assert len(batches.seen) == 2  # of six
    files = [file.name for file in (tmp_path / "whole").glob("*.safetensors")]
    assert set(files) == {"crossget.safetensors", f"{'adapter' if rank else 'model'}.safetensors"}
    for name in files:
        one, two = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one | two)


TWO_PROCESSES = """
import contextlib, sys
from pathlib import Path
import torch
torch.autocast = lambda *arguments, **options: contextlib.nullcontext()  # exact enough to compare
from bench.training.finetune import Recipe, Settings, finetune
recipe = Recipe(sys.argv[1], "crossget", {"r": {"vision": 6, "text": 2}}, data=sys.argv[2],
                epochs=3.0, batch=4, rate=0.003)
finetune(recipe, Settings(Path(sys.argv[3])))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(
    clip: Path, data: str, tmp_path: Path, repo: Path, commands: Server
) -> None:
    """Their contrastive loss is of the batch over both, and so are the gradients.

    They are told of each other as torchrun tells them.
    """

    def start(name: str, **told: object) -> Command:
        env = {**os.environ, "PYTHONPATH": str(repo), **{k: str(v) for k, v in told.items()}}
        return commands.start("-c", TWO_PROCESSES, clip, data, tmp_path / name, env=env)

    with socket.socket() as free:
        free.bind(("localhost", 0))
        meet = {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2}
    pair = [start("two", **meet, RANK=rank, LOCAL_RANK=rank) for rank in range(2)]
    for done in [started.wait() for started in (start("one"), *pair)]:
        assert done.returncode == 0, done.stderr
    base = load_file(clip / "model.safetensors")
    for name in ("model", "crossget"):
        one, two = (load_file(tmp_path / n / f"{name}.safetensors") for n in ("one", "two"))
        error = sum(float((one[key] - two[key]).square().sum()) for key in one)
        change = sum(float((one[key] - base.get(key, 0 * one[key])).square().sum()) for key in one)
        assert change > 0 and error < 1e-4 * change
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2


def test_a_batch_that_does_not_divide_into_the_processes_is_refused(recipe: Make) -> None:
    three = SimpleNamespace(num_processes=3, process_index=0)
    any_of: Any = None
    with pytest.raises(BenchError, match="a batch of 4 does not divide into 3 processes"):
        finetuning._loss(any_of, any_of, any_of, recipe(), list(range(8)), 0, three)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_recipe_is_refused_and_one_can_begin_anew(
    recipe: Make, tmp_path: Path, batches: Batches
) -> None:
    interrupt(batches, recipe(rank=2), tmp_path, 3)
    other = recipe("tome", rank=4)
    with pytest.raises(BenchError, match="method is crossget, rank is 2 there.*--no-resume"):
        finetune(other, Settings(tmp_path))
    with pytest.raises(BenchError, match="seed is 0 there"):
        finetune(recipe(rank=2), Settings(tmp_path, seed=1))
    finetune(other, Settings(tmp_path, resume=False))
    assert len(batches.seen) == 6


@pytest.mark.parametrize("damage", ["model.safetensors", "optimizer.bin", "about.json"])
def test_a_broken_checkpoint_is_one_clear_line(
    damage: str, recipe: Make, tmp_path: Path, batches: Batches
) -> None:
    interrupt(batches, recipe(), tmp_path, 2)
    (folder,) = checkpoints(tmp_path)
    (folder / damage).write_bytes(b"broken")
    with pytest.raises(
        BenchError, match=f"cannot resume from .*{folder.name}.*: delete it"
    ) as error:
        finetune(recipe(), Settings(tmp_path))
    assert "\n" not in str(error.value)


def test_a_finished_training_is_not_repeated(
    recipe: Make, tuned: Path, batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(recipe(rank=2), Settings(tuned)) == {}
    assert "is done already" in capsys.readouterr().err and not batches.seen
    with pytest.raises(BenchError, match="another training .rank is 2 there"):
        finetune(recipe(rank=3), Settings(tuned))


def test_beginning_anew_leaves_nothing_of_the_earlier_training(
    recipe: Make, tuned: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    finetune(recipe("none"), Settings(out, resume=False))
    assert {f.name for f in out.iterdir()} == {"training.json", "model.safetensors", "log.jsonl"}
    assert catalogue.load(str(out)).provenance["training"]["method"] == "none"


def test_a_training_never_overwrites_what_it_starts_from(
    recipe: Make, clip: Path, tuned: Path
) -> None:
    for folder in (clip, tuned):
        with pytest.raises(BenchError, match="holds a model already.*--out"):
            finetune(recipe("none", model=str(folder)), Settings(folder, resume=False))


def test_all_methods_train_on_the_same_batches_and_none_is_clips_own_loss(
    recipe: Make, clip: Path, tmp_path: Path, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []

    def spy(*arguments: Any) -> Tensor:
        loss = contrastive_loss(*arguments)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(task_losses, "contrastive_loss", spy)
    monkeypatch.setattr(task_losses, "takes_bfloat16", lambda *_: True)
    first, texts = {}, {}
    for method in ("none", "tome", "evit", "dynamicvit", "crossget"):
        batches.seen.clear(), losses.clear()
        finetune(recipe(method, epochs=1.0), Settings(tmp_path / method))
        first[method], texts[method] = losses[0], [batch.texts for batch in batches.seen]
        assert len(texts[method]) == 2 and texts[method] == texts["none"]
    assert len(set(first.values())) == 5  # each reduces in its own way
    batch, model = batches.seen[0], catalogue.load(str(clip), backend="eager")
    assert model.tokenizer is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out: Any = model.model(pixel_values=batch.images, **model.tokenizer(batch.texts))
    a, b = out.image_embeds.float(), out.text_embeds.float()
    plain = contrastive_loss(a, b, model.model.logit_scale.exp(), torch.arange(4))  # type: ignore[operator]
    assert float(plain) == pytest.approx(first["none"], rel=1e-5)


def test_the_loss_falls_in_bfloat16_with_weights_in_float32(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    dtypes = set()

    def spy(image: Tensor, text: Tensor, scale: Tensor, own: Tensor) -> Tensor:
        loss = contrastive_loss(image, text, scale, own)
        losses.append(float(loss.detach()))
        return loss

    real = catalogue.load

    def load(*arguments: Any, **options: Any) -> Loaded:
        loaded = real(*arguments, **options)
        layer: Any = loaded.model.vision_model.encoder.layers[0].mlp.fc1  # type: ignore[union-attr]
        layer.register_forward_hook(lambda m, _, out: dtypes.add((m.weight.dtype, out.dtype)))
        return loaded

    monkeypatch.setattr(task_losses, "contrastive_loss", spy)
    monkeypatch.setattr(catalogue, "load", load)
    monkeypatch.setattr(task_losses, "takes_bfloat16", lambda *_: True)
    finetune(recipe(epochs=12.0, rate=0.003), Settings(tmp_path / "out"))
    assert dtypes == {(torch.float32, torch.bfloat16)}
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


@pytest.fixture
def losses(recipe: Make, clip: Path) -> Callable[[float], tuple[float, float]]:
    """The loss of one batch, by the weight of CrossGET's own loss; and that loss."""
    loaded = catalogue.load(str(clip), backend="eager")
    reducer: Any = learning.reducer("crossget", {}, {})
    finetuning._prepared(recipe(), reducer, loaded, 0)
    processes = accelerator("cpu")

    def at(weight: float) -> tuple[float, float]:
        chosen = recipe(weight=weight)
        files = pairs.load(chosen.data, loaded, None)
        of_task = task_losses.task_loss(loaded, processes)
        loss = finetuning._loss(of_task, loaded, reducer, chosen, files, 0, processes)
        with bench.reduced(loaded.model, reducer, **BOTH):
            rng = torch.Generator().manual_seed(0)
            total = float(loss(0, rng).detach())
        return total, float(clip_alignment_loss(loaded.model, reducer.tokens).detach())

    return at


def test_crossgets_loss_is_the_weighted_sum_of_the_task_and_the_alignment(
    losses: Callable[[float], tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[float] = []

    def spy(*arguments: Any) -> Tensor:
        loss = contrastive_loss(*arguments)
        alone.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(task_losses, "contrastive_loss", spy)
    (task, alignment), only = losses(0.0), losses(1.0)
    assert task == alone[0] and 0 < alignment < 0.9 * task
    assert only == (alignment, alignment)
    assert losses(0.25)[0] == pytest.approx(0.75 * task + 0.25 * alignment, rel=1e-5)


def test_each_image_is_aligned_with_its_own_text() -> None:
    model = tiny.clip()
    image, text = torch.randn(3, 1, 32), torch.randn(5, 1, 32)

    def loss(texts: Tensor, own: Tensor | None) -> Tensor:
        cross = CrossTokens()
        cross.values = {"vision": {0: image}, "text": {0: texts}}
        return clip_alignment_loss(model, cross, own)

    own = torch.tensor([4, 0, 3])
    assert torch.equal(loss(text, own), loss(text[own], None))
    assert not torch.allclose(loss(text, own), loss(text, torch.tensor([0, 1, 2])))


def cell(model: Path, **params: Any) -> Cell:
    return Cell("s", str(model), "cost", "crossget", {**BOTH, **params}, "label", "cpu")


def test_a_cell_takes_what_the_method_learned_unless_it_names_something_else(
    tuned: Path, tmp_path: Path
) -> None:
    loaded = catalogue.load(str(tuned))
    own = load_file(tuned / "crossget.safetensors")
    save_file({key: -5 * value for key, value in own.items()}, tmp_path / "other.safetensors")

    def run(context: Any) -> Tensor:
        with context as model:
            return logits(model)

    def given(tokens: Any) -> Tensor:
        return run(bench.reduced(loaded.model, "crossget", cross_tokens=tokens, **BOTH))

    expected = {
        "own": (cell(tuned), given(tuned / "crossget.safetensors")),
        "zeros": (cell(tuned, cross_tokens=None), given(None)),
        "other": (
            cell(tuned, cross_tokens=str(tmp_path / "other.safetensors")),
            given(tmp_path / "other.safetensors"),
        ),
    }
    for name, (which, wanted) in expected.items():
        assert torch.equal(run(session.apply(loaded, which)), wanted), name
        others = [other for key, (_, other) in expected.items() if key != name]
        assert not any(torch.equal(wanted, other) for other in others), name


def test_fine_tuning_goes_on_from_what_the_method_learned(recipe: Make, tuned: Path) -> None:
    saved = bench.core.registry.method("crossget")(
        cross_tokens=tuned / "crossget.safetensors"
    ).tables
    reducer: Any = learning.reducer("crossget", {}, model_tuned.learned_with(str(tuned)))
    assert saved.keys() == reducer.tokens.vectors.keys()
    assert all(torch.equal(saved[tower], reducer.tokens.vectors[tower]) for tower in saved)
    fresh: Any = learning.reducer(
        "crossget", {"cross_tokens": None}, model_tuned.learned_with(str(tuned))
    )
    assert not fresh.tokens.vectors


@pytest.mark.parametrize("file", ["adapter.safetensors", "crossget.safetensors"])
def test_the_fingerprint_follows_all_that_was_trained(
    file: str, tuned: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    before = catalogue.fingerprint(str(copy))
    assert before == catalogue.fingerprint(str(tuned))
    save_file({k: v + 1 for k, v in load_file(copy / file).items()}, copy / file)
    assert catalogue.fingerprint(str(copy)) != before
    assert catalogue.load(str(copy)).provenance["sha256"] == catalogue.fingerprint(str(copy))


def test_the_fingerprint_follows_what_it_started_from(
    tuned: Path, clip: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(clip, tmp_path / "base")
    copy = shutil.copytree(tuned, tmp_path / "copy")
    about = json.loads((copy / "training.json").read_text())
    (copy / "training.json").write_text(json.dumps({**about, "model": str(base)}))
    before = catalogue.fingerprint(str(copy))
    state = load_file(base / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, base / "model.safetensors", {"format": "pt"})
    assert catalogue.fingerprint(str(copy)) != before
    shutil.rmtree(base)
    with pytest.raises(BenchError, match="what .*copy started from: no model folder .*base"):
        catalogue.load(str(copy))


def test_folders_that_do_not_serve(tuned: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    save_file({"nowhere.lora_a": torch.zeros(1, 2)}, copy / "adapter.safetensors")
    with pytest.raises(BenchError, match="adapter.safetensors does not fit .*missing.*lora_a"):
        catalogue.load(str(copy))
    (copy / "adapter.safetensors").unlink()
    with pytest.raises(BenchError, match="copy has no weights .*train it again"):
        catalogue.load(str(copy))
    (copy / "training.json").write_text("{}")
    with pytest.raises(BenchError, match="training.json has no 'model' that fits"):
        catalogue.load(str(copy))


def suite(folder: Path, model: Path, tokens: str, task: str = "cost") -> tuple[Any, Any]:
    file = folder / "suite.yaml"
    file.write_text(
        f"models:\n  - {{name: {model}, tasks: ['{task}']}}\nmethods:\n"
        f"  - {{name: tome, r: 4}}\n  - {{name: crossget, r: 4{tokens}}}\n"
        "profiles: cpu\nbatch_sizes: [1]\nlatency_seconds: 0.02\n"
    )
    return spec.load(str(file))


def test_a_cells_key_follows_the_files_that_its_parameters_name(
    clip: Path, tuned: Path, tmp_path: Path
) -> None:
    file = shutil.copy(tuned / "crossget.safetensors", tmp_path / "tokens.safetensors")

    def keys(tokens: str) -> dict[str, str]:
        plan = planning.plan(suite(tmp_path, clip, tokens)[0], "m")
        hashed = {p.cell.method for p in plan.cells if "files_sha256" in p.provenance}
        assert hashed == ({"crossget"} if tokens else set())
        return {planned.cell.method: planned.key for planned in plan.cells}

    without, before = keys(""), keys(f", cross_tokens: {file}")
    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    after = keys(f", cross_tokens: {file}")
    assert len({without["crossget"], before["crossget"], after["crossget"]}) == 3
    assert without["tome"] == before["tome"] == after["tome"]
    Path(file).write_bytes(b"cut")
    with pytest.raises(BenchError, match="suite.yaml:5: .*tokens.safetensors is truncated"):
        checking.check(*suite(tmp_path, clip, f", cross_tokens: {file}"))


@pytest.mark.parametrize("tokens", ["/no/such.safetensors", "[null, /no/such.safetensors]"])
def test_a_missing_file_is_named_before_anything_is_measured(
    tokens: str, clip: Path, tmp_path: Path
) -> None:
    parsed, origin = suite(tmp_path, clip, f", cross_tokens: {tokens}")
    with pytest.raises(BenchError) as error:
        runner.run(parsed, origin, tmp_path / "results", machine="m", quiet=True)
    says = "suite.yaml:5: no file /no/such.safetensors: cross_tokens must name a safetensors file"
    assert str(error.value) == says
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_fine_tuned_folder_is_measured_as_any_model(
    tuned: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
    monkeypatch.setattr("gc.collect", lambda: 0)  # before each timing: most of this test's time
    parsed, origin = suite(tmp_path, tuned, "", data)
    summary = runner.run(parsed, origin, tmp_path / "results", machine="m", quiet=True)
    assert (summary.ran, summary.failed, summary.unsupported) == (3, 0, 0)
    for file in (tmp_path / "results").rglob("*.json"):
        record = Record.read(file)
        assert record.accuracy.metrics["i2t_r1"].n == 4
        assert record.provenance["weights"] == "fine-tuned"
        assert record.provenance["training"]["method"] == "crossget"
        assert record.provenance["weights_sha256"] == catalogue.fingerprint(str(tuned))


def test_models_that_ship_are_loaded_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_tuned, "shipped", lambda: tmp_path)
    assert model_tuned.Tuned.listing() == {}
    (tmp_path / "tome-both").mkdir()
    assert model_tuned.Tuned.listing() == {}  # not one of ours
    about = {"model": "embedded:clip-emoji", "method": "tome", "budget": {}, "params": {}}
    about |= {"rank": 2}
    (tmp_path / "tome-both" / "training.json").write_text(json.dumps(about))
    plain = catalogue.load("embedded:clip-emoji").model
    factors = {k: torch.randn(v).half() for k, v in adapters.shapes(plain, 2).items()}
    save_file(factors, tmp_path / "tome-both" / "adapter.safetensors")
    name = "embedded:clip-emoji@tome-both"
    assert list(model_tuned.Tuned.listing()) == [name]
    layers: list[Any] = [catalogue.load(n).model.visual_projection for n in (name, name[:-10])]
    b, a = (factors[f"visual_projection.lora_{part}"].float() for part in "ba")
    change = b @ a
    assert torch.equal(layers[0].weight, layers[1].weight + change)
    assert catalogue.fingerprint(name) != catalogue.fingerprint("embedded:clip-emoji")
    with pytest.raises(BenchError, match="did you mean 'embedded:clip-emoji@tome-both'"):
        catalogue.load("embedded:clip-emoji@tome-bth")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `run_bench.py train ARGUMENTS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_the_command_line_trains_says_what_it_did_and_is_done(
    clip: Path,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        str(clip), "--method", "crossget", "--r", "vision=6,text=2", "--layers", "1", "--data",
        data, "--batch", "4", "--param", "guided_matching=false", "--loss-weight", "0",
        "--rank", "1",
    ]  # fmt: skip
    assert call(monkeypatch, *command) == call(monkeypatch, *command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "{}" and err.count("is done already") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert "crossget" in folder.name and "guided_matching=False" in folder.name
    about = json.loads((folder / "training.json").read_text())
    assert about["budget"] == {**BOTH, "layers": [1]} and about["steps"] == 2
    assert (about["weight"], about["rank"]) == (0, 1) and about["command"].startswith("run_bench")


def test_recipes_that_differ_have_folders_that_differ(recipe: Make) -> None:
    changes = [
        {}, {"rank": 2}, {"rate": 0.02}, {"weight": 0.0}, {"batch": 5}, {"epochs": 2.0},
        {"data": "emoji"}, {"budget": {"r": 3}}, {"params": {"importance": "attention"}},
    ]  # fmt: skip
    assert len({recipe(**change).name() for change in changes}) == len(changes)


@pytest.fixture(scope="module")
def odd(clip: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data that training cannot use."""
    root = tmp_path_factory.mktemp("odd")
    folders.vit(root / "vit")
    tiny.siglip().save_pretrained(root / "siglip")
    shutil.copytree(clip, root / "wordless", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(clip, root / "blind", ignore=shutil.ignore_patterns("preprocessor*"))
    squares = Path(data.removeprefix("karpathy:"))
    shutil.copytree(squares.parent, root / "cut")
    for file in sorted((root / "cut").glob("*.png"))[1:]:
        file.write_bytes(file.read_bytes()[:-200])
    rows = json.loads(squares.read_text())["images"]
    silent = {"images": [{**row, "sentences": []} for row in rows]}
    (root / "silent.json").write_text(json.dumps(silent))
    return root


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--r 4", "--r needs --method NAME"),
        ("--loss-weight 0", "--loss-weight needs --method NAME"),
        ("CLIP", "needs --method NAME, or 'none' (from scratch: python -m recipes NAME)"),
        ("CLIP --method tomme", "did you mean 'tome'"),
        ("CLIP --method tome --compile", "No such option"),
        ("clip-emoji --method tome", "did you mean 'embedded:clip-emoji'"),
        ("ODD/vit --method tome --r 4", "unknown training data 'karpathy': fashion, or"),
        ("CLIP --method tome --r 4 --freeze", "'tome' learns nothing of its own"),
        ("ODD/siglip --method tome --r 4", "is neither a CLIP nor of the kinds"),
        ("ODD/wordless --method none", "no tokenizer"),
        ("ODD/blind --method none", "preprocessor_config.json"),
        ("CLIP --method none --data karpaty:x.json", "unknown training data 'karpaty:x.json'"),
        ("CLIP --method none --data karpathy:/no/x.json", "cannot read /no/x.json"),
        ("CLIP --method none --data karpathy:ODD/silent.json", "silent.json has a caption"),
        ("CLIP --method none --data karpathy:ODD/cut/squares.json", ".png does not decode"),
        ("CLIP --method none --out /dev/null/here", "cannot write to /dev/null/here"),
        ("CLIP --method none --device warp", "no device 'warp' here"),
        ("CLIP --method crossget --r 0", "removes nothing and learns nothing"),
        ("CLIP --method tome --r audio=3", "no tower 'audio'"),
        ("CLIP --method tome --r many", "--r: 'many' is no whole number"),
        ("CLIP --method tome --r -1", "--r: '-1' is no whole number"),
        ("CLIP --method evit --keep-rate 2", "--keep-rate: '2' is no number above 0"),
        ("CLIP --method evit --keep-rate 0.7 --layers 9", "outside this model's blocks"),
        ("CLIP --method tome --r 4 --param fast=1", "'tome' has no parameter 'fast'"),
        ("CLIP --method tome --r 4 --param fast", "wants KEY=VALUE"),
        ("CLIP --method tome --r 4 --param fast=[", "--param fast:1: not valid YAML"),
        ("CLIP --method crossget --param cross_tokens=/no/file", "no file /no/file"),
        ("CLIP --method none --batch 0", "batch 0 makes no sense"),
        ("CLIP --method none --batch few", "'--batch'"),
        ("CLIP --method none --rank -2", "rank -2 makes no sense"),
    ],
)
def test_mistakes_are_one_clear_line_and_exit_2(
    arguments: str,
    says: str,
    clip: Path,
    data: str,
    odd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [part.replace("CLIP", str(clip)).replace("ODD", str(odd)) for part in arguments.split()]
    if "--method" in given and "--data" not in given:
        given += ["--data", data]
    capsys.readouterr()
    assert call(monkeypatch, *given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line
    assert not list(tmp_path.rglob("training.json"))


@pytest.mark.parametrize(("library", "rank"), [("accelerate", 0), ("peft", 2)])
def test_a_missing_library_is_one_clear_line(
    library: str, rank: int, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BenchError, match=f"pip install {library}"):
        finetune(recipe(rank=rank), Settings(tmp_path))


def test_cross_tokens_of_another_model_are_refused(recipe: Make, tmp_path: Path) -> None:
    CrossTokens({"text": torch.zeros(2, 32)}).save(tmp_path / "other.safetensors")
    wrong = recipe(params={"cross_tokens": str(tmp_path / "other.safetensors")})
    with pytest.raises(BenchError, match=r"the text tower is \(2, 32\).* takes \(3, 32\)"):
        finetune(replace(wrong, rank=1), Settings(tmp_path / "out"))


def test_a_classifier_may_be_frozen_while_its_method_learns(tmp_path: Path) -> None:
    vit, pictures = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "pictures")
    recipe = Recipe(
        str(vit), "dynamicvit", {"keep_rate": 0.5}, data=f"imagefolder:{pictures}",
        epochs=4.0, batch=4, rate=0.01, freeze=True,
    )  # fmt: skip
    out = tmp_path / "out"
    finetune(recipe, Settings(out))
    assert not {model_tuned.ADAPTER, model_tuned.WEIGHTS} & {file.name for file in out.iterdir()}
    loaded, base = catalogue.load(str(out)), catalogue.load(str(vit))
    x = {"pixel_values": tiny.images()}
    with torch.no_grad():
        assert torch.equal(loaded.model(**x).logits, base.model(**x).logits)
    learned = load_file(out / "dynamicvit.safetensors")
    before = bench.core.registry.method("dynamicvit")().learn({"vision": (4, 32)})
    assert any(not torch.equal(learned[f"predictor.{k}"], v) for k, v in before.items())
    cell = Cell("s", str(out), "cost", "dynamicvit", {"keep_rate": 0.5}, "", "auto")
    assert session.parameters(cell)["predictor"] == out / "dynamicvit.safetensors"
    random = replace(cell, model=str(vit), random_weights=True)
    assert session.parameters(random)["predictor"] == "random"
    with torch.no_grad(), session.apply(loaded, cell):
        assert loaded.model(**x).logits.isfinite().all()
