"""The bridge to lmms-eval: its own command on a task and a model that lie in a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vlm_models as tiny
from PIL import Image
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from bench.core.errors import BenchError, Unsupported
from bench.runs import lmms

lmms_eval = pytest.importorskip("lmms_eval")

WORDS = ["what", "is", "this", "?", "red", "green", "blue"]
COLOURS = ["red", "green", "blue", "yellow", "black"]
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/colours.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.of
doc_to_text: "{{question}}"
doc_to_target: "{{colour}}"
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false, until: ["\\n\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: [{version: 0.0}]
"""
PICTURES = """
from PIL import Image


def of(doc):
    return [Image.open(path) for path in doc["images"]]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA with a processor, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<s>", *WORDS]
    words += [f"w{i}" for i in range(len(words), tiny.WORDS)]
    words[tiny.IMAGE] = "<image>"
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w99"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.add_special_tokens(["<image>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    images = CLIPImageProcessor(size={"height": 24, "width": 24}, do_center_crop=False)
    tiny.llava().save_pretrained(folder)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions, the last with two pictures."""
    folder = tmp_path_factory.mktemp("task")
    docs = []
    for i, colour in enumerate(COLOURS):
        image = Image.linear_gradient("L").rotate(40 * i).convert("RGB")
        image.paste(colour, (30, 20 * i, 160, 20 * i + 120))
        path = folder / f"{colour}.png"
        image.save(path)
        earlier = [docs[0]["images"][0]] if i == len(COLOURS) - 1 else []
        question = "what is this ? " * (i + 1)
        docs.append({"images": [str(path), *earlier], "question": question, "colour": colour})
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (folder / "pictures.py").write_text(PICTURES)
    (folder / "colours.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    return folder


def run(model: Path, task: Path, out: Path, arguments: str, *more: str) -> list[str]:
    """The answers that `lmms-eval` logs."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "lmms_eval", "--model", lmms.NAME, "--tasks", "colours"]
    command += ["--include_path", task, "--output_path", out, "--log_samples", *more]
    command += ["--model_args", f"pretrained={model},device=cpu{arguments}"]
    quiet = {**os.environ, "HF_HOME": str(task / "hub"), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    logs = list(out.rglob("*_samples_colours.jsonl"))  # its exit status is 0 even after an error
    assert logs, done.stdout + done.stderr
    docs = sorted(map(json.loads, logs[0].read_text().splitlines()), key=lambda d: d["doc_id"])
    return [doc["filtered_resps"] for doc in docs]


@pytest.mark.slow
def test_the_command_answers_with_the_method_at_work(
    model: Path, task: Path, tmp_path: Path
) -> None:
    cache = ["--use_cache", str(tmp_path / "cache")]
    plain = run(model, task, tmp_path / "out", "", *cache)
    assert len(plain) == len(COLOURS) and all(plain)
    tome = run(model, task, tmp_path / "out", ",method=tome,r={vision: 8}", *cache)
    assert tome != plain
    assert run(model, task, tmp_path / "out", ",method=tome,r=8", "--batch_size", "3") == tome
    assert run(model, task, tmp_path / "out", "", *cache) == plain
    entries = (tmp_path / "cache" / "cache.audit.jsonl").read_text().splitlines()
    keys = [json.loads(entry)["cache_key"] for entry in entries]
    assert len(keys) == len(set(keys)) == 2 * len(COLOURS)


def test_cached_answers_are_kept_apart(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.caching.response_cache import ResponseCache

    monkeypatch.setattr(ResponseCache, "create", ResponseCache.create)
    lmms._sign_caches()
    lmms._sign_caches()

    def key(arguments: Any, name: Any = lmms.NAME) -> str:
        made = ResponseCache.create(cache_root=str(tmp_path), model=name, model_args=arguments)
        return str(made.model_fingerprint)

    base = f"pretrained={model},method=tome"
    assert key(base + ",r=4") == key(f"method=tome,r=4,pretrained={model}")
    plain = f"pretrained={model}"
    assert len({key(base + more) for more in ("", ",r=4", ",r=8")} | {key(plain)}) == 4
    assert "signature" not in key(base, "another")
    made = lmms.CrossgetBench(str(model), "tome", r=4, device="cpu")
    assert key("", made) == key(base + ",r=4,dtype=auto,backend=sdpa,frames=16")
    before = key(base)
    monkeypatch.setattr("bench.core.registry.source_hash", lambda name, params: "edited")
    assert key(base) != before


def test_a_chat_template_stops_and_refusals(model: Path) -> None:
    made = lmms.CrossgetBench(str(model), "tome", r=4, device="cpu", batch_size=2)
    made.processor.chat_template = (
        "{% for part in messages[0].content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %} w20"
    )
    made.task_dict = {"task": {"test": [["image"], ["image", "image"], [], ["video"]]}}

    def messages(doc: list[str]) -> list[dict[str, Any]]:
        seen = [{"type": kind, "url": Image.new("L", (40, 30), 90)} for kind in doc]
        return [{"role": "user", "content": [*seen, {"type": "text", "text": "what ?"}]}]

    def ask(doc: int, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(args=("", messages, options, doc, "task", "test"))

    assert made._prompt(ask(1))[0] == "<image><image>what ? w20"
    asked = [ask(doc, max_new_tokens=4) for doc in range(3)]
    together = made.generate_until(asked)
    assert together == [made.generate_until([one])[0] for one in asked]
    (cut,) = made.generate_until([ask(0, max_new_tokens=4, until=["", " "])])
    assert cut == together[0].split()[0]
    with pytest.raises(Unsupported, match="video"):
        made.generate_until([ask(3)])
    with pytest.raises(Unsupported, match="generate_until only"):
        made.loglikelihood([])


def test_a_wrong_argument_is_said_before_any_data_are_loaded(model: Path) -> None:
    with pytest.raises(BenchError, match="did you mean 'tome'"):
        lmms.CrossgetBench(str(model), "tom", device="cpu")
    with pytest.raises(BenchError, match="no parameter 'rr'"):
        lmms.CrossgetBench(str(model), "tome", rr=3, device="cpu")
    with pytest.raises(Unsupported, match="embedded:blip-vqa-emoji is no language model"):
        lmms.CrossgetBench("embedded:blip-vqa-emoji", device="cpu")


def test_the_embedded_model_answers_by_its_name() -> None:
    made = lmms.CrossgetBench("embedded:llava-emoji", "fastv", keep_rate=0.5, device="cpu")
    made.task_dict = {"task": {"test": [Image.new("RGB", (64, 64), "white")]}}

    def messages(doc: Image.Image) -> list[dict[str, Any]]:
        parts = [
            {"type": "image", "url": doc},
            {"type": "text", "text": "how many objects are there ?"},
        ]
        return [{"role": "user", "content": parts}]

    options = {"max_new_tokens": 8}
    asked = SimpleNamespace(args=("", messages, options, 0, "task", "test"))
    assert made.generate_until([asked])[0] in ("one", "two", "three", "four")
