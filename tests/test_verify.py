"""The published figures as data, and what counts as agreement."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.core import registry
from bench.core.errors import BenchError
from bench.core.registry import method
from bench.measure.conventions import CONVENTIONS, Decoder, prompt_macs
from bench.models.noise import asked
from bench.records import published
from bench.records.published import PublishedCost
from bench.runs import verify

COSTS = published.costs()
SUPPORTED = [cost for cost in COSTS if not cost.unsupported]


def cost(printed: str, **kwargs: object) -> PublishedCost:
    return replace(SUPPORTED[0], published=printed, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("printed", "ours", "agrees"),
    [
        ("2.7", 2.7499, True),  # half a unit of the last digit is more than 1 %
        ("2.7", 2.7501, False),
        ("61.60", 62.21, True),  # here 1 % is more
        ("61.60", 62.22, False),
        ("12.035655936", 11.92, True),
        ("167.40", 165.7, False),
    ],
)
def test_agreement_is_1_percent_or_the_printed_rounding(
    printed: str, ours: float, agrees: bool
) -> None:
    assert cost(printed).within(ours) is agrees


def test_cut_digits_agree_up_to_the_next_one() -> None:
    printed = replace(cost("2.9"), cut=True)
    assert printed.within(2.9) and printed.within(2.999) and printed.within(2.88)
    assert not printed.within(3.0) and not printed.within(2.8)
    assert not cost("2.9").within(2.988)


def test_rounding_keeps_trailing_zeros() -> None:
    assert cost("61.60").rounding == Decimal("0.005")
    assert cost("4.0").rounding == Decimal("0.05")


def test_data_is_whole() -> None:
    ids = [(c.figure, c.label) for c in COSTS]
    assert len(set(ids)) == len(ids)
    for c in COSTS:
        assert c.source and c.quantity in published.UNITS, c
        assert bool(c.model) != bool(c.unsupported), c
        if c.model:
            assert c.method in registry.methods(), c
        assert c.convention in ("", *CONVENTIONS), c
    assert {c.method for c in SUPPORTED} >= {"none", "tome", "evit", "crossget", "fastv"}


MEANS = {c.figure for c in COSTS if len(c.prompts) > 1}  # over many prompts: below


@pytest.mark.parametrize("figure", sorted({c.figure for c in SUPPORTED} - MEANS))
def test_published_costs_are_met(figure: str) -> None:
    for check in verify.checks(figure):
        wanted = "unsupported" if check.cost.unsupported else "ok"
        assert check.verdict == wanted, (check.cost.label, check.cost.published, check.ours)


def test_unreduced_clip_is_exact() -> None:
    (total,) = [c for c in verify.checks("clip-b16/none") if c.cost.quantity == "gmacs"]
    assert total.ours == 20.56706816


def test_crossget_on_clip_is_the_printed_one() -> None:
    """Tokens layer by layer, GMACs but for 6,400 MACs (see the data's note), and all parameters."""
    model, inputs = verify.build("clip-b16")
    crossget = method("crossget")()
    with bench.reduced(model, crossget, r={"vision": 16, "text": 0}):
        tokens = bench.trace(model, **inputs).tokens
        count = bench.count_macs(model, **inputs)
    after = [182, 166, 150, 134, 118, 102, 86, 70, 54, 38, 22, 12]
    assert tokens["vision"] == list(zip([198, *after], after, strict=False))
    assert tokens["text"] == [(78, 78)] * 12
    # the authors' counter, fvcore, has no price for a merge by indices: here a MAC a channel
    assert count.by_op["merge"] == (198 - 12) * 768
    # the query is a row beside the keys: its products with them are taken twice, and with itself
    query = sum(n + 1 for n, _ in tokens["vision"]) * 768
    assert count.total - count.by_op["merge"] - query == 12_035_655_936 - 6_400
    learned = crossget.learn({"vision": (12, 768), "text": (12, 512)}).values()
    total = sum(p.numel() for p in [*model.parameters(), *learned])
    assert round(total / 1e6, 3) == 149.636


def test_fastv_keeps_all_tokens_up_to_its_layer() -> None:
    """576 image tokens and 36 others: half of the image's go ahead of block 2."""
    model, _ = verify.build("llava-1.5-7b-hf")
    with asked(model, 36) as prompt, bench.reduced(model, "fastv", keep_rate=0.5, layers=(2,)):
        tokens = bench.trace(model, **prompt).tokens["language"]
    assert tokens == [(612, 612)] * 2 + [(324, 324)] * 30


@pytest.mark.parametrize("cost", [c for c in COSTS if c.figure in MEANS], ids=lambda c: c.label)
def test_a_mean_over_prompts_is_met(cost: PublishedCost) -> None:
    """By the rule for all of its prompts, and by a pass for the shortest, which are as long."""

    def macs(image: int, words: int) -> float:
        left = round(cost.params.get("keep_rate", 1) * image)
        return prompt_macs([left + words] * 32, Decoder(4096, 11008), cost.convention) / 1e12

    each = [macs(*prompt) for prompt in cost.prompts]
    assert len(each) in (5, 11) and cost.within(sum(each) / len(each))
    shortest = min(cost.prompts)
    ran = verify.recompute(replace(cost, prompts=(shortest, shortest)))
    assert ran == pytest.approx(macs(*shortest), rel=0.005)


def test_reasons_of_figures_that_fit_no_rule_are_arithmetic() -> None:
    why = {(c.figure, c.label): c.unsupported for c in COSTS if c.unsupported}
    a_token = {"7B": 32 * 2 * 4096 * 2, "13B": 40 * 2 * 5120 * 2}  # bytes: blocks, K and V, float16
    assert round(576 * a_token["7B"] / 1e6, 2) == 301.99
    assert "301.99 MB" in why["llava15-7b/kv-cache", "VoCo-LLaMA, 576 tokens"]
    assert round(367.2e6 / a_token["7B"]) == 700
    for tokens, thirteen, seven in ((2880, 2250, 1440), (320, 250, 160)):
        assert [tokens * a_token[k] / 2**20 for k in ("13B", "7B")] == [thirteen, seven]
        text = why["llava15-7b/kv-cache", f"CDPruner, {tokens} tokens"]
        assert f"{thirteen} MiB" in text and f"{seven} MiB" in text
    tera = prompt_macs([616] * 32, Decoder(4096, 11008), "three-product") / 1e12
    assert f"{tera:.2f} tera-MACs" in why["llava15-7b/prumerge", "none"]
    assert f"{2 * tera:.2f} TFLOPs" in why["llava15-7b/prumerge", "none"]
    (ten,) = (c for c in COSTS if c.label == "fastv K=2 10%")
    fifteen = verify.recompute(replace(ten, params={"keep_rate": 0.15, "layers": [2]}))
    assert f"{fifteen:.2f}" == "9.35" and "9.348" in why[ten.figure, "fastv K=2 15%"]


def test_what_the_docs_derive_is_arithmetic(repo: Path) -> None:
    """The table of what papers print for the same model."""
    text = (repo / "docs/conventions.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "2A" in line]
    llama, qwen = Decoder(4096, 11008), Decoder(3584, 18944)

    def flops(tokens: int) -> str:
        return f"{2 * prompt_macs([tokens] * 32, llama, 'three-product') / 1e12:.2f}"

    eight_5, eight_8, nine_3, nine_6 = rows
    assert flops(576) in eight_5 and flops(576 + 64) in eight_5
    assert flops(576 + 87) == "8.82" and "663 tokens, 87 words" in eight_8
    assert flops(616) in nine_3 and flops(698) == "9.30" and "698" in nine_3
    assert flops(576 + 144) == "9.60" and "720 tokens, 144 words" in nine_6
    for tokens, sizes, blocks, rule in (
        (576, llama, 32, 3),
        (6272, qwen, 28, 3),
        (6272, qwen, 28, 2),
    ):
        name = {3: "three-product", 2: "two-product"}[rule]
        tera = prompt_macs([tokens] * blocks, sizes, name) / 1e12
        assert f"{tera:.3f}" in text or f"{tera:.2f}" in text


def test_blip_is_counted_over_a_whole_training_pass() -> None:
    """32 questions of 14 tokens and 47 answers of 5 on one image; captions of 15 tokens."""
    found = {c.cost.label: c for c in verify.checks("blip/none")}
    assert found["vqav2"].ours == pytest.approx(186.121350144, abs=1e-9)
    assert found["coco_caption"].ours == pytest.approx(65.719566336, abs=1e-9)

    def words(n: int) -> dict[str, Any]:
        return {"input_ids": {"shape": [1, n], "fill": 1}}

    image, questions, answers = (one["inputs"] for one in found["vqav2"].cost.passes)
    one_of_each = replace(
        found["vqav2"].cost,
        passes=(
            {"part": "vision_model", "inputs": image},
            {"part": "text_encoder", "inputs": {**questions, **words(14)}},
            {"part": "text_decoder", "inputs": {**answers, **words(5)}},
        ),
    )
    assert verify.recompute(one_of_each) == pytest.approx(107.302580736, abs=1e-9)


def test_main_fails_when_a_figure_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        cost("20.56706816"),
        cost("21.0", label="wrong"),
        cost("1", model="", unsupported="why not"),
    ]
    monkeypatch.setattr(published, "costs", lambda only: rows)
    monkeypatch.setattr(verify, "recompute", lambda row: 20.56706816)
    assert verify.main(json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == {"ok": 1, "off": 1, "unsupported": 1}
    assert said["checks"][1]["difference_percent"] == pytest.approx(-2.06, abs=0.01)
    assert verify.main() == 1
    assert "why not" in capsys.readouterr().out
    rows.pop(1)
    assert verify.main() == 0


def test_unknown_figure_is_a_clear_error() -> None:
    with pytest.raises(BenchError, match="no published figure matches 'nope'.*deit-s/tome"):
        verify.main(only="nope")


def test_sources_stay_beside_the_numbers(repo: Path) -> None:
    text = (repo / "bench/assets/data/published.json").read_text(encoding="utf-8")
    for figure in json.loads(text)["figures"]:
        assert figure["source"] and figure["what"], figure["id"]


def test_what_was_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    verify.main(only="blip/none")
    said = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    assert "a caption of 15 tokens" in said
    assert "32 questions padded to 14" in said and "47 answers padded to 5" in said


def test_what_is_printed_of_a_model_and_task() -> None:
    for figure in published._data()["figures"]:
        for row in figure.get("beside", []):
            ((one, cost),) = [
                found
                for found in published.results(f"somebody/{row['model']}", f"{row['task']}:a:b")
                if found[0].figure == figure["id"] and found[0].method == row["method"]
            ]
            assert one.method in registry.methods() and all(map(float, one.accuracy.values()))
            assert (cost.label if cost else "") == one.cost
    assert not published.results("clip-vit-base-patch16", "emoji-retrieval")
    assert not published.results("embedded:clip-emoji", "karpathy:x.json")
