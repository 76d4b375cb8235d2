"""Published numbers stand beside the rows they belong to, marked as published, and in no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_report import make, np, write

from bench.records.record import Record
from bench.report import build
from bench.report.data import frame
from bench.report.tables.printed import printed_table

KARPATHY = "karpathy:flickr.json:images"


def records(model: str, task: str) -> list[Record]:
    rng = np.random.default_rng(0)
    settings = {"none": {}, "crossget": {"r": 16}}
    made = [make(model, "emoji-retrieval", m, p, rng) for m, p in settings.items()]
    return [replace(one, cell=replace(one.cell, task=task)) for one in made]


def shown(model: str, task: str) -> list[list[str]]:
    frames = frame.build(records(model, task))
    table = printed_table(frames, frames.groups()[0])
    if table is None:
        return []
    assert "As published" in table.caption and "measured here" in table.caption
    return table.texts


def test_clip_on_flickr30k() -> None:
    none, crossget = shown("openai/clip-vit-base-patch16", KARPATHY)
    assert none[:2] == ["none", "–"] and crossget[:2] == ["crossget", "r=16"]
    assert "image→text R@1 92.1" in none[2] and "text→image R@1 79.6" in crossget[2]
    assert (none[3], crossget[3]) == ("20.56706816 GMACs", "12.035655936 GMACs")
    assert "fine-tuned on Flickr30k" in none[4]
    assert none[5].startswith("sdc17/CrossGET")


@pytest.mark.parametrize(
    ("model", "task", "accuracy", "cost", "differs"),
    [
        ("blip-itm-base-coco", "rerank-karpathy", "R@1 81.9", "153.2 GMACs", "momentum twins"),
        ("blip-image-captioning-base", "caption-karpathy", "SPICE 23.8", "65.7 GMACs", "15 tokens"),
        ("blip-vqa-base", "vqav2", "accuracy 77.5", "186.1 GMACs", "padded to 14 tokens"),
        ("vilt-b32-finetuned-nlvr2", "nlvr2", "accuracy 83.1", "132.5 GMACs", "another model"),
    ],
)
def test_blip(model: str, task: str, accuracy: str, cost: str, differs: str) -> None:
    ((*_, said, printed, otherwise, _),) = shown(f"someone/{model}", f"{task}:a.json:images")
    assert accuracy in said and printed == cost and differs in otherwise


def test_llava() -> None:
    none, crossget = shown("llava-hf/llava-1.5-7b-hf", "pope:random.json:images")
    assert (none[2], crossget[2]) == ("F1 85.9", "F1 83.9")
    assert (none[3], crossget[3]) == ("–", "throughput ratio 1.9")


def test_the_page_and_the_paper_show_them_too(tmp_path: Path) -> None:
    root = write(records("llava-hf/llava-1.5-7b-hf", "pope:random.json:images"), tmp_path / "r")
    build([root], tmp_path / "out", formats=["html", "paper"])
    page = (tmp_path / "out/index.html").read_text()
    assert "As published: none of these numbers was measured here" in page
    assert "<td>throughput ratio 1.9</td>" in page
    paper = tmp_path / "out/paper"
    (table,) = paper.glob("tables/*--published.tex")
    assert "throughput ratio 1.9" in table.read_text()
    assert rf"\input{{tables/{table.name}}}" in (paper / "main.tex").read_text()


def test_others_have_none() -> None:
    assert not shown("openai/clip-vit-base-patch16", "emoji-retrieval")
    assert not shown("embedded:clip-emoji", KARPATHY)
