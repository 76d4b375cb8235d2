"""`run_bench.py cost`: costs from shapes alone, for one method or several."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import vlm_models as tiny

from bench.cli import app
from bench.core.errors import BenchError
from bench.measure.generation import stage_macs
from bench.models.noise import asked, noise
from bench.runs import cost, shape_only


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `run_bench.py cost ARGUMENTS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "cost", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("name", "billions", "image", "words"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7.063, 576, 36),
        ("llava-1.5-13b-hf", 13.351, 576, 0),
        ("llava-v1.6-vicuna-7b-hf", 7.063, 576 + 48 * 49, 4),
        ("Qwen/Qwen2-VL-2B-Instruct", 2.209, 324, 5),
        ("llava-onevision-qwen2-0.5b-ov-hf", 0.894, 729 + 81 * 82, 4),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.031, 729 + 81 * 82, 4),
        ("OpenGVLab/InternVL3-1B-hf", 0.938, 13 * 256, 4),
        ("internvl3-2b-hf", 2.089, 13 * 256, 4),
        ("internvl3-8b-hf", 7.944, 13 * 256, 4),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", 0.256, 17 * 64, 4),
        ("smolvlm-500m-instruct", 0.507, 17 * 64, 4),
        ("HuggingFaceM4/Idefics3-8B-Llama3", 8.462, 17 * 169, 4),
        ("google/paligemma-3b-mix-224", 2.923, 256, 4),
        ("paligemma-3b-mix-448", 2.924, 1024, 4),
        ("google/gemma-3-4b-it", 4.300, 256, 4),
        ("gemma-3-12b-it", 12.187, 256, 4),
        ("gemma-3-27b-it", 27.432, 256, 4),
        ("Qwen/Qwen2-VL-7B-Instruct", 8.291, 324, 36),
        ("qwen2.5-vl-3b-instruct", 3.755, 324, 5),
        ("qwen2.5-vl-32b-instruct", 33.453, 324, 5),
        ("Qwen/Qwen3-VL-2B-Instruct", 2.128, 324, 5),
        ("qwen3-vl-8b-instruct", 8.767, 324, 5),
        ("blip2-opt-2.7b", 3.745, 32, 8),
        ("Salesforce/blip2-flan-t5-xl", 3.877, 32, 8),
        ("blip2-flan-t5-xxl", 12.098, 32, 0),
    ],
)
def test_known_shapes_are_asked_without_values(
    name: str, billions: float, image: int, words: int
) -> None:
    model: Any = shape_only.on_meta(name).model
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    with asked(model, words) as prompt:
        assert prompt["input_ids"].shape == (1, image + words)
        found = stage_macs(model, prompt)
    text = model.config.text_config
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    width *= getattr(text, "num_key_value_heads", heads)
    begun = int(text.model_type == "t5")  # its decoder has a token of its own by then
    assert found.kv_bytes == 2 * 2 * text.num_hidden_layers * width * (image + words + begun)
    head = text.hidden_size * text.vocab_size
    assert 0 < found.macs["decode"] - head < found.macs["prefill"] - head


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_costs_on_the_meta_device_are_those_of_real_tensors(family: str) -> None:
    import bench

    make, _ = tiny.MODELS[family]
    real, meta = make(), make().to("meta")
    ways: list[tuple[str, dict[str, Any]]] = [
        ("divprune", {"r": {"language": [0] * 6}}),
        ("divprune", {"keep_rate": 0.4}),
        ("tome", {"r": 2}),
        ("random", {"keep_rate": {"projector": 0.5}}),
    ]
    for method, given in ways:
        with bench.reduced(real, method, **given), bench.reduced(meta, method, **given):
            prompt = noise(real, words=7)
            with asked(meta, words=7) as shape:
                assert stage_macs(real, prompt) == stage_macs(meta, shape)


FILMS = {  # and tokens of three frames; the kit tries others
    "Qwen3-VL": (tiny.qwen3_vl, 3 * 4),
    "LLaVA-OneVision": (tiny.onevision, 3 * 9 + 1),
    "LLaVA-NeXT-Video": (tiny.next_video, 3 * 9),
    "Video-LLaVA": (tiny.video_llava, 3 * 37),
}


@pytest.mark.parametrize("family", FILMS)
def test_a_video_costs_on_the_meta_device_what_it_does_with_values(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of noise, as many tokens as the model makes of them; what a method leaves."""
    import bench

    monkeypatch.setattr("bench.models.noise.QWEN_GRID", 4)
    make, tokens = FILMS[family]
    real, meta = make(), make().to("meta")
    prompt = noise(real, words=7, frames=3)
    assert int((prompt["input_ids"] == tiny.VIDEO).sum()) == tokens
    ways: list[tuple[str, dict[str, Any]]] = [
        ("none", {}),
        ("evs", {"keep_rate": 0.5}),
        ("fastv", {"keep_rate": 0.5}),
        ("dycoke-decode", {"keep_rate": 0.5}),
    ]
    for method, given in ways:
        with (
            bench.reduced(real, method, **given),
            bench.reduced(meta, method, **given),
            asked(meta, words=7, frames=3) as shape,
        ):
            assert stage_macs(real, prompt) == stage_macs(meta, shape), method


def test_the_cost_of_a_video(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, ways = str(tmp_path), ["--method", "vidcom2", "--method", "dycoke-decode"]
    tiny.onevision(blocks=4).save_pretrained(model)
    assert call(monkeypatch, model, "--frames", "4", "--words", "6", *ways, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scope"] == "a prompt of one video of 4 frames and 6 other tokens"
    _, before, inside = told["methods"]
    assert before["shares"]["prefill"] < 0.4 and before["shares"]["KV cache, MiB"] < 0.5
    assert inside["shares"]["prefill"] == 1 and inside["shares"]["each further"] < 1
    # more than an image has to lose, and less than a video has
    many = ["--method", "random", "--r", "projector=60"]
    assert call(monkeypatch, model, "--frames", "8", *many) == 0
    capsys.readouterr()
    tiny.llava(blocks=1).save_pretrained(model)
    for name, says in (
        ("timm:vit_tiny_patch16_224", "is no language model that is shown videos"),
        (model, "takes no videos here"),
    ):
        assert call(monkeypatch, name, "--frames", "4") == 2
        assert says in capsys.readouterr().err


def test_the_head_answers_with_the_next_token_alone() -> None:
    model = tiny.llava()
    short, long = (stage_macs(model, noise(model, words=n)).macs["prefill"] for n in (4, 5))
    text = model.config.text_config
    one = (
        text.num_hidden_layers
        * text.hidden_size
        * (2 * text.hidden_size + 2 * text.hidden_size // 2 + 3 * text.intermediate_size)
    )
    attention = text.num_hidden_layers * 2 * text.hidden_size * (41 * 41 - 40 * 40)
    assert long - short == one + attention  # and nothing of the head


def test_options_go_to_the_methods_that_they_are_for() -> None:
    of = cost.arguments
    assert of(["tome", "visionzip"], r="13") == [("tome", {"r": 13}), ("visionzip", {})]
    assert of(["tome", "evit"], r="8", keep_rate="0.5") == [
        ("tome", {"r": 8}),
        ("evit", {"keep_rate": 0.5}),
    ]
    assert of(["visionzip"], keep_rate="0.25", params=["contextual_share=0.1"]) == [
        ("visionzip", {"keep_rate": 0.25, "contextual_share": 0.1})
    ]
    assert of(["evit"], r="vision=4", layers="2") == [("evit", {"r": {"vision": 4}, "layers": [2]})]
    assert of(["evit", "topk"], r="4") == [("evit", {"r": 4}), ("topk", {"r": 4})]
    assert of(["random"], layers="language=2/8") == [("random", {"layers": {"language": [2, 8]}})]
    with pytest.raises(BenchError, match="did you mean 'dominant'"):
        of(["visionzip"], params=["dominnt=5"])


def test_a_table_of_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(tmp_path)
    tiny.llava().save_pretrained(model)
    assert call(monkeypatch, model, "--method", "tome", "--r", "4", "--words", "6", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    plain, tome = said["methods"]
    assert (plain["method"], tome["method"]) == ("none", "tome r=4")
    assert list(plain["costs"]) == [
        "vision", "projector", "prefill", "first token", "each further", "KV cache, MiB",
    ]  # fmt: skip
    for key, share in tome["shares"].items():
        assert 0 < share < 1 and share == tome["costs"][key] / plain["costs"][key]
    first = sum(plain["costs"][key] for key in ("vision", "projector", "prefill"))
    assert plain["costs"]["first token"] == pytest.approx(first)
    assert call(monkeypatch, model, "--method", "divprune") == 0
    out = capsys.readouterr().out
    assert "36 other tokens" in out and "divprune" in out and "(" in out


def test_other_models_have_a_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "timm:deit_small_patch16_224"
    assert call(monkeypatch, name, "--method", "tome", "--r", "13", "--method", "fastv") == 1
    out = capsys.readouterr().out
    assert "4.61" in out and "59%" in out
    assert "fastv: method 'fastv' acts in a language tower, and this model has vision" in out


def test_a_projector_inside_the_image_encoder_has_its_own_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "qwen2-vl-7b-instruct"
    assert call(monkeypatch, name, "--method", "tome", "--r", "8", "--json") == 0
    plain, tome = json.loads(capsys.readouterr().out)["methods"]
    four, patches, out = 4 * 1280, 36 * 36, 3584
    merger = patches // 4 * (four * four + four * out) + 5 * patches * 1280
    assert plain["costs"]["projector"] == pytest.approx(merger / 1e9)
    embedding, depth, width = patches * 3 * 2 * 14 * 14 * 1280, 32, 1280
    per_token = 4 * width * width + 2 * 4 * width * width + 2 * 5 * width
    blocks = depth * (patches * per_token + 2 * patches * patches * width)
    assert plain["costs"]["vision"] == pytest.approx((embedding + blocks) / 1e9)
    assert 0.85 < tome["shares"]["vision"] < 0.95
    assert tome["shares"]["projector"] == tome["shares"]["prefill"] == 1  # patches go back


def test_dropped_patches_leave_whole_groups_by_chance_where_nobody_knows_which() -> None:
    import bench

    real, meta = tiny.qwen2_vl(), tiny.qwen2_vl().to("meta")
    given = {"keep_rate": {"vision": 0.3}, "layers": {"vision": [1]}}
    with bench.reduced(real, "random", **given), bench.reduced(meta, "random", **given):
        with asked(meta, words=7) as shape:
            guessed = stage_macs(meta, shape)
        stages = stage_macs(real, noise(real, words=7))
    assert guessed.macs["vision"] == stages.macs["vision"]
    for stage in ("projector", "prefill", "decode"):
        assert guessed.macs[stage] == pytest.approx(stages.macs[stage], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["llava-1.5-7b"], "did you mean 'llava-1.5-7b-hf'"),
        (["llava-1.5-7b-hf", "--method", "tomme"], "did you mean 'tome'"),
        (["llava-1.5-7b-hf", "--method", "tome", "--r", "x"], "--r: 'x' is no whole number"),
        (["llava-1.5-7b-hf", "--method", "tome", "--param", "a=1"], "--param a=1"),
        (["llava-1.5-7b-hf", "--words", "-1"], "--words"),
        (["./no-such-folder"], "no-such-folder"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line


def test_a_folder_without_weights_has_its_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny.blip2().config.save_pretrained(tmp_path)
    capsys.readouterr()
    assert call(monkeypatch, str(tmp_path), "--method", "fastv", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["methods"]) == 2
