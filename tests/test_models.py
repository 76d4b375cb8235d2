from __future__ import annotations

import json
from pathlib import Path

import folders
import pytest
import torch

from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.huggingface import configuration
from bench.models.loaded import Classifier, TwoTower
from bench.models.shapes import shapes


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.clip(tmp_path_factory.mktemp("models") / "clip")


def test_a_saved_classifier_loads_with_its_transform(vit: Path) -> None:
    loaded = catalogue.load(str(vit))
    assert isinstance(loaded, Classifier) and loaded.kind == "classifier"
    assert (loaded.classes, loaded.image_size) == (5, (32, 32))
    assert loaded.provenance["weights"] == "path" and not loaded.random
    assert loaded.provenance["sha256"] == catalogue.fingerprint(str(vit))
    assert loaded.model(**loaded.example_inputs(2)).logits.shape == (2, 5)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_saved_clip_loads_with_its_tokenizer(clip: Path) -> None:
    loaded = catalogue.load(str(clip))
    assert isinstance(loaded, TwoTower) and loaded.tokenizer is not None
    tokens = loaded.tokenizer(["red square"])
    assert tokens["input_ids"].shape == (1, 14)
    output = loaded.model(**loaded.example_inputs(3))
    assert output.logits_per_image.shape == (3, 3)


def test_example_texts_end_at_their_last_token(clip: Path) -> None:
    loaded = catalogue.load(str(clip))
    ids = loaded.example_inputs(4)["input_ids"]
    assert (ids[:, -1] == loaded.end_token).all() and (ids[:, :-1] != loaded.end_token).all()


def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    loaded = catalogue.load(str(folders.timm_vit(tmp_path / "vit")))
    assert loaded.image_size == (32, 32) and loaded.classes == 5
    assert loaded.model(**loaded.example_inputs(2)).shape == (2, 5)


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file(model.state_dict(), tmp_path / "short.safetensors")
    with pytest.raises(BenchError, match="does not fit this model"):
        catalogue.load(f"timm:vit_tiny_patch16_224@{tmp_path / 'short.safetensors'}")
    whole = timm.create_model("vit_tiny_patch16_224")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    loaded = catalogue.load(f"timm:vit_tiny_patch16_224@{tmp_path / 'w.safetensors'}")
    assert loaded.provenance["weights"] == "path"
    assert torch.equal(loaded.model.state_dict()["cls_token"], whole.state_dict()["cls_token"])


def test_random_weights_need_no_files_and_are_seeded(vit: Path) -> None:
    one, two = (catalogue.load(str(vit), random_weights=True, seed=s).model for s in (1, 1))
    other = catalogue.load(str(vit), random_weights=True, seed=2)
    assert other.random and other.provenance["weights"] == "random"
    key = "classifier.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.model.state_dict()[key])


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"])
def test_known_shapes_need_no_hub(name: str) -> None:
    with torch.device("meta"):
        loaded = catalogue.load(name, random_weights=True, device="meta")
    assert loaded.kind == "two-tower"
    millions = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    assert millions == pytest.approx(151.3 if "clip" in name else 203.2, abs=0.1)


def test_every_shape_in_the_table_is_a_configuration() -> None:
    for name in shapes():
        config = configuration(name, False, True)
        vision = getattr(config, "vision_config", config)
        width = getattr(vision, "embed_dim", vision.hidden_size)
        assert width % getattr(vision, "num_attention_heads", getattr(vision, "num_heads", 1)) == 0
        if config.model_type == "clip":
            assert config.text_config.projection_dim == config.projection_dim


def test_attention_backends_agree_and_are_what_was_asked_for(vit: Path, tmp_path: Path) -> None:
    for folder in (vit, folders.timm_vit(tmp_path / "t")):
        eager = catalogue.load(str(folder), backend="eager")
        fused = catalogue.load(str(folder), backend="sdpa")
        inputs = fused.example_inputs(2)
        a, b = (getattr(x, "logits", x) for x in (eager.model(**inputs), fused.model(**inputs)))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not eager.model.blocks[0].attn.fused_attn and fused.model.blocks[0].attn.fused_attn
    assert catalogue.load(str(vit), backend="eager").model.config._attn_implementation == "eager"


def test_dtypes(vit: Path) -> None:
    loaded = catalogue.load(str(vit), dtype="bfloat16")
    assert loaded.example_inputs(1)["pixel_values"].dtype == loaded.dtype == torch.bfloat16


def test_the_embedded_architecture_loads_without_weights() -> None:
    loaded = catalogue.load("embedded:vit-fashion", random_weights=True)
    assert loaded.random and loaded.classes == 10
    assert loaded.model(**loaded.example_inputs(1)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:vit-fasion", "unknown model .* did you mean 'embedded:vit-fashion'"),
        ("clip-vit-base-patch61", "unknown model .* did you mean 'clip-vit-base-patch16'"),
        ("clip-vit-base-patch16", "--random-weights"),
        ("timm:vit_tiny_patch61_224", "unknown timm model .* did you mean 'vit_tiny_patch16_224'"),
        ("/no/such/folder", "no model folder"),
        ("timm:vit_tiny_patch16_224@/no/such.safetensors", "is missing"),
        ("timm:resnet18", "no adapter for .*supported"),
    ],
)
def test_wrong_names_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as error:
        catalogue.load(name, random_weights="resnet" in name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [4, 100, 2000])
def test_truncated_weights_are_found_before_loading(tmp_path: Path, size: int) -> None:
    folder = folders.vit(tmp_path / "vit")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    for look in (catalogue.fingerprint, catalogue.load):
        with pytest.raises(BenchError, match=r"model.safetensors is truncated.*get it again"):
            look(str(folder))


def test_missing_weights_and_foreign_folders(tmp_path: Path) -> None:
    folder = folders.vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BenchError, match=r"no weights \(model.safetensors\).*--random-weights"):
        catalogue.load(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BenchError, match="no adapter for .*BertModel; supported: "):
        catalogue.load(str(folder), random_weights=True)
    (folder / "config.json").unlink()
    with pytest.raises(BenchError, match="has no config.json"):
        catalogue.load(str(folder))


def test_a_hub_out_of_reach_names_the_fix() -> None:
    with pytest.raises(BenchError, match="cannot load 'some/model' .*--random-weights"):
        catalogue.load("some/model")
    with pytest.raises(BenchError, match="cannot build 'some/model' .*clip-vit-base-patch16"):
        catalogue.load("some/model", random_weights=True)
    with pytest.raises(BenchError, match="cannot load 'timm:vit_tiny_patch16_224' .*local folder"):
        catalogue.load("timm:vit_tiny_patch16_224")


def test_fingerprints_follow_the_weights(tmp_path: Path) -> None:
    folder = folders.vit(tmp_path / "vit")
    before = catalogue.fingerprint(str(folder))
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert catalogue.fingerprint(str(folder)) != before
    assert catalogue.fingerprint("some/model") is None
    assert catalogue.fingerprint("a", random_weights=True) != catalogue.fingerprint(
        "b", random_weights=True
    )
