"""Weights are never unpickled, and nothing in a model's folder is executed."""

from __future__ import annotations

import contextlib
import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.tensors import checked
from bench.training import loop
from tests import folders
from tests.inputs.judge import Bad, faults_of

TIMM = "timm:vit_tiny_patch16_224"
EVIL = "raise SystemExit('executed')\n"
RUN = ("run", "--results", ".", "--profile", "cpu", "--task", "cost", "--method", "none")


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, ran: Path) -> None:
        """Name the file."""
        self.ran = ran

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Tell pickle to call what makes it."""
        return Path.mkdir, (self.ran,)


def _evil(file: Path, ran: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": Evil(ran)}, file, pickle_module=pickle)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".dat"])
def test_a_pickle_is_refused(suffix: str, tmp_path: Path) -> None:
    bad = Bad(
        suffix,
        (*RUN, "--model", f"{TIMM}@w{suffix}"),
        prepare=lambda folder: _evil(folder / f"w{suffix}", tmp_path / "ran"),
        names=(f"w{suffix}", "safetensors"),
    )
    (tmp_path / "here").mkdir()
    assert faults_of(bad, tmp_path / "here") == [] and not (tmp_path / "ran").exists()


def test_a_pickle_of_what_a_method_learned_is_refused(tmp_path: Path) -> None:
    bad = Bad(
        "learned",
        ("cost", TIMM, "--method", "dynamicvit", "--param", "predictor=w.pth"),
        prepare=lambda folder: _evil(folder / "w.pth", tmp_path / "ran"),
        names=("w.pth is no safetensors file",),
    )
    (tmp_path / "here").mkdir()
    assert faults_of(bad, tmp_path / "here") == [] and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "flax.pt", "model.ckpt"]
)
@pytest.mark.parametrize("kind", [{"model_type": "vit"}, {"architecture": "vit_tiny_patch16_224"}])
def test_a_folder_of_pickles_is_refused(kind: dict[str, str], name: str, tmp_path: Path) -> None:
    bad = Bad(
        name,
        (*RUN, "--model", "./m"),
        {"m/config.json": json.dumps(kind)},
        lambda folder: _evil(folder / "m" / name, tmp_path / "ran"),
        (
            "m/model.safetensors" if "architecture" in kind else "t.AutoModel",
            "pickles are never loaded",
        ),
    )
    (tmp_path / "here").mkdir()
    assert faults_of(bad, tmp_path / "here") == [] and not (tmp_path / "ran").exists()


def _convert(model: str) -> None:
    """Do what the refusal of a model says."""
    with pytest.raises(BenchError, match="convert it: python -c") as refusal:
        catalogue.fingerprint(model)
    program = shlex.split(str(refusal.value).split("convert it: ")[1])
    assert program[:2] == ["python", "-c"] and len(program) == 3
    exec(program[2], {})


@pytest.mark.parametrize("inner", [None, "model", "state_dict"])
def test_the_command_converts_a_file_of_timm(inner: str | None, tmp_path: Path) -> None:
    import timm

    state = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    state["norm.bias"] = state["norm.weight"]  # tied
    file = tmp_path / "it's $HOME" / "w.pth"
    file.parent.mkdir()
    torch.save({inner: state} if inner else state, file)
    _convert(f"{TIMM}@{file}")
    with safe_open(file.with_suffix(".safetensors"), "pt") as converted:
        assert set(converted.keys()) == set(state)
        assert all(torch.equal(converted.get_tensor(name), state[name]) for name in state)


@pytest.mark.parametrize("make", [folders.vit, folders.timm_vit])
def test_the_command_converts_a_folder(make: Callable[[Path], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make(tmp_path / "m")
    safe = folder / "model.safetensors"
    before = catalogue.load(str(folder)).model.state_dict()
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.unlink()
    _convert(str(folder))
    after = catalogue.load(str(folder)).model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_architecture_does_not_get_into_the_command(tmp_path: Path) -> None:
    _evil(tmp_path / "pytorch_model.bin", tmp_path / "ran")
    about = {"model_type": "vit", "architectures": ["x; import os"]}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(BenchError, match="t.AutoModel.from_pretrained"):
        catalogue.fingerprint(str(tmp_path))


def test_a_library_that_would_unpickle_is_refused(tmp_path: Path) -> None:
    _evil(tmp_path / "w.pth", tmp_path / "ran")
    with pytest.raises(BenchError, match="x is a pickle, which is never loaded"), checked("x"):
        torch.hub.load_state_dict_from_url((tmp_path / "w.pth").as_uri(), str(tmp_path / "cache"))
    assert not (tmp_path / "ran").exists()
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth")  # as before


@pytest.mark.parametrize("known", [True, False])
def test_nothing_in_a_models_folder_is_executed(known: bool, tmp_path: Path) -> None:
    folder = folders.clip(tmp_path / "m")
    for file in ("modeling.py", "__init__.py", "custom_generate/generate.py", "sitecustomize.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(EVIL)
    names = {"AutoConfig": "C", "AutoModel": "M", "AutoImageProcessor": "I", "AutoProcessor": "P"}
    remote = {"auto_map": {auto: f"modeling.{name}" for auto, name in names.items()}}
    remote["auto_map"]["AutoTokenizer"] = ["modeling.T", "modeling.T"]  # type: ignore[assignment]
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text()) | remote
        if not known:
            settings |= {
                "model_type": "theirs",
                "image_processor_type": "I",
                "tokenizer_class": "T",
            }
        (folder / name).write_text(json.dumps(settings))
    if known:
        assert catalogue.load(str(folder)).model is not None
    else:
        with pytest.raises(BenchError, match="config.json describes no model"):
            catalogue.load(str(folder))


def test_a_checkpoint_of_a_training_runs_nothing(tmp_path: Path) -> None:
    """Accelerate keeps optimisers and generators in pickles, and reads nothing but tensors."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    job = loop.Job(model, lambda step, rng: model(torch.ones(1, 2)).sum(), 2, [optimizer], dict)
    settings = loop.Settings(tmp_path / "out")
    settings.out.mkdir()
    loop.fit(job, settings, evaluate_every=10)
    checkpoint = loop.checkpoints(settings.out)[-1]
    pickles = [file for file in checkpoint.iterdir() if file.suffix in (".bin", ".pkl", ".pt")]
    assert pickles
    for file in pickles:
        whole = file.read_bytes()
        _evil(file, tmp_path / "ran")
        with contextlib.suppress(loop.TrainingError):  # generators that do not load begin anew
            loop.fit(job, settings, evaluate_every=10)
        assert not (tmp_path / "ran").exists()
        file.write_bytes(whole)
