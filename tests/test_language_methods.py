"""VTW and PACT in a language model; FlowCut in an image encoder, and after it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import timm
import torch
import vlm_models as tiny
from golden_checks.cases import golden
from golden_checks.image_blocks import flowcut_site
from golden_checks.in_language import pact_site
from sites import close

import bench
from bench.check.cases import CASES
from bench.check.kit import OK, check
from bench.core import BenchError, Plan
from bench.core.schedules import as_schedule, blocks_of
from bench.core.site import LanguageSite
from methods.algorithms.clustering import bounded_peaks
from methods.flowcut import FlowCut
from methods.pact import PACT
from methods.vtw import VTW, withdrawal_block

# --- VTW --------------------------------------------------------------------------------------


def test_vtw_says_where_no_block_will_do() -> None:
    full = torch.tensor([[4.0, 0.0]])
    with pytest.raises(BenchError, match=r"eta=0.003; the smallest of blocks 5 to 6 is"):
        withdrawal_block(full, -full[:, None].expand(1, 2, 2))


def test_only_a_method_that_can_keep_none_is_asked_to() -> None:
    assert as_schedule(VTW(), keep_rate=0)(9, 12, 36, 36) == 36
    with pytest.raises(BenchError, match=r"keep_rate must be in \(0, 1\]"):
        as_schedule(bench.core.registry.method("fastv")(), keep_rate=0)


@torch.no_grad()
@pytest.mark.parametrize("params", [{}, {"keep_positions": False}, {"keep_rate": 0.5}])
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "BLIP-2", "BLIP-2 T5", "Qwen3-VL"])
def test_vtw_in_whole_models(family: str, params: dict[str, Any]) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(3)
    with bench.reduced(model, "vtw", **params):
        together = tiny.answers(model, batch, 4)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)])
        seen = bench.trace(model, **tiny.alone(batch, 0)).tokens["language"]
    assert torch.equal(together, each)
    words = int((tiny.alone(batch, 0)["input_ids"] != tiny.IMAGE).sum())
    assert [n for n, _ in seen[3:]] == [words] * (len(seen) - 3)


# --- PACT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [0.0, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("most", [1, 4, 40])
def test_centres_are_those_of_the_loop(cutoff: float, most: int) -> None:
    torch.manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(2, 40, 4), dim=-1)
    x[:, 7] = x[:, 3]  # equally dense: the lower position comes first
    dist = (1 - x @ x.transpose(1, 2)).clamp_min(0)
    dist.diagonal(dim1=1, dim2=2).zero_()
    chosen, decided = bounded_peaks(dist, cutoff, most, rounds=32)
    assert decided
    for b in range(2):
        density = [sum(math.exp(-((d / 2) ** 2)) for d in row) for row in dist[b].tolist()]
        centres: list[int] = []
        for i in sorted(range(40), key=lambda i: (-round(density[i], 4), i)):
            if all(dist[b, i, j] > cutoff for j in centres):
                centres.append(i)
        assert chosen[b].nonzero()[:, 0].tolist() == sorted(centres[:most])


def test_too_few_rounds_are_noticed_and_more_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.tensor([0.6 + 0.01 * i for i in range(40)]).cumsum(0)  # each near the next alone
    chain = (place[:, None] - place).abs()[None]
    assert not bounded_peaks(chain, 1.0, 40, rounds=16)[1]
    centres, decided = bounded_peaks(chain, 1.0, 40, rounds=64)
    assert decided and int(centres.sum()) == 20
    given, _, params, _ = golden("pact", "pact")
    s = pact_site(given, params["rope_base"])
    plan = PACT().plan(s, 44)
    monkeypatch.setattr("methods.algorithms.clustering.ROUNDS", 1)
    assert torch.equal(PACT().plan(s, 44).keep, plan.keep)


def test_pact_without_its_second_step_and_its_means() -> None:
    given, out, params, _ = golden("pact", "pact")
    s, r = pact_site(given, params["rope_base"]), 96 - 52
    plain = PACT(include_pruned_in_mean=False).plan(s, r)
    _, size = plain.apply(s.x, s.size)
    passed = int(out["kept_after_first_step"].sum())
    assert int(size[~s.protect[0][plain.keep][..., None]].sum()) == passed == 52
    stays = PACT(take_mean=False).plan(s, r)
    x, size = stays.apply(s.x, s.size)
    assert torch.equal(x, s.x[:, stays.keep[0]])
    assert torch.equal(size[0, :, 0].long(), out["cluster_sizes"])
    by_norm = PACT(importance="norm").scores(s)
    close(by_norm, s.x.norm(dim=-1))
    q, k = s.unrotated()
    by_queries = PACT(vector_to_use_in_distance_clustering="current_q")
    image = s.split()[1]
    far = by_queries.distances(s, image, torch.tensor([[4]]))[0, :, 0]
    wide = q[0].transpose(0, 1).flatten(1)[image[0]]
    close(far, 1 - torch.cosine_similarity(wide, wide[4:5]))
    assert k.shape == q.shape


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"importance": "norms"}, "no importance 'norms'"),
        ({"vector_to_use_in_distance_clustering": "keys"}, "no vector 'keys'"),
        ({"cutoff": -1}, "0 or more"),
    ],
)
def test_pact_names_wrong_parameters(params: dict[str, Any], says: str) -> None:
    with pytest.raises(BenchError, match=says):
        PACT(**params)


@torch.no_grad()
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "Qwen3-VL"])
def test_pact_adds_the_logarithm_of_sizes_to_the_logits(family: str) -> None:
    """In all blocks behind the removal, for a prompt and for the next token, in a padded batch."""
    make, batch_of = tiny.MODELS[family]
    model, batch, masks = make(), batch_of(3), []
    block = bench.adapter_for(model).towers(model)["language"].blocks[-1]
    method, sizes = PACT(cutoff=0.6), []

    def planned(site: LanguageSite, r: int) -> Plan:
        plan = PACT.plan(method, site, r)
        sizes.append(plan.apply(site.x, site.size)[1][0, :, 0])
        return plan

    object.__setattr__(method, "plan", planned)
    hook = block.self_attn.register_forward_pre_hook(
        lambda m, args, kw: masks.append(kw["attention_mask"]), with_kwargs=True
    )
    plain = PACT(cutoff=0.6, no_proportional_attention=True)
    with hook:
        with bench.reduced(model, method, keep_rate=0.55, layers=(2,)):
            tiny.answers(model, batch, 2)
        with bench.reduced(model, plain, keep_rate=0.55, layers=(2,)):
            model(**tiny.alone(batch, 0))
    assert len(sizes) == 3 and max(size.max() for size in sizes) > 1
    for b, size in enumerate(sizes):
        expected = size[size > 0].log()  # padding that no sample needs is gone
        n = len(expected)
        close(masks[0][b, 0, -1, -n:], expected)
        close(masks[1][b, 0, -1, -n - 1 :], torch.cat([expected, torch.zeros(1)]))
        assert (masks[0][b, 0, -1, :-n] == -torch.inf).all()
    assert masks[2] is None or masks[2].dtype == torch.bool


# --- FlowCut ----------------------------------------------------------------------------------


def test_images_of_a_batch_lose_as_many_patches_as_each_needs() -> None:
    given = golden("flowcut", "vit_b2").given
    s = flowcut_site(given, 0, torch.arange(37).expand(2, -1), running=torch.empty(0), remaining=4)
    s = replace(s, running=FlowCut().rate(s, None))
    plans = [FlowCut(over_batch=together).plan(s, 27) for together in (False, True)]
    counts = [(plan.keep >= 0).sum(1).tolist() for plan in plans]
    assert plans[0].padded and len(set(counts[0])) == 2 and counts[1] == [min(counts[0])] * 2
    for b in range(2):
        fields = ("x", "q", "k", "v", "size", "protect", "anchor", "running")
        alone = replace(s, **{f: getattr(s, f)[b : b + 1] for f in fields})
        keep = plans[0].keep[b]
        assert torch.equal(keep[keep >= 0], FlowCut().plan(alone, 27).keep[0])


@torch.no_grad()
def test_flowcut_in_a_deep_encoder() -> None:
    """Patches leave at every second block; alone as in a batch; all are there without values."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=48, num_heads=3, depth=12
    ).eval()
    for block in model.blocks:
        block.attn.qkv.weight *= 6
    x = torch.randn(4, 3, 64, 64) * torch.tensor([0.3, 1.0, 2.0, 4.0])[:, None, None, None]
    with bench.reduced(model, "flowcut", keep_rate=10 / 64):
        together = model(x)
        close(torch.cat([model(one) for one in x.split(1)]), together)
        tokens = [bench.trace(model, one).tokens["vision"] for one in x.split(1)]
    for seen in tokens:
        n = [a for a, _ in seen]
        assert n[:2] == [65, 65] and n[10:] == [11, 11] and n == sorted(n, reverse=True)
        assert all(n[i] == n[i + 1] for i in (2, 4, 6, 8)) and n[8] < 65
    assert len({tuple(seen) for seen in tokens}) > 1
    with torch.device("meta"), bench.reduced(model.to("meta"), "flowcut", keep_rate=10 / 64):
        seen = bench.trace(model, torch.empty(1, 3, 64, 64)).tokens["vision"]
    assert [n for n, _ in seen] == [65] * 10 + [11] * 2


def test_flowcut_in_a_llava_with_its_second_stage() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(3)
    stages = [
        ("flowcut", {"keep_rate": 18 / 36, "layers": (1,)}),
        ("flowcut-language", {"keep_rate": 9 / 18, "layers": (2,)}),
    ]
    with torch.no_grad(), bench.reduced(model, stages):
        together = tiny.answers(model, batch, 4)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)])
        seen = bench.trace(model, **tiny.alone(batch, 0)).tokens
    assert torch.equal(together, each)
    words = int((tiny.alone(batch, 0)["input_ids"] != tiny.IMAGE).sum())
    assert [n - words for n, _ in seen["language"]] == [18, 18, 9, 9, 9, 9]


def test_layers_count_from_the_end() -> None:
    assert blocks_of((-2, 3, 0.5), 24) == (22, 3, 12)
    with pytest.raises(BenchError, match="outside this model's blocks 0 to 11"):
        as_schedule(FlowCut(), keep_rate=0.5, layers=(-13,))(0, 12, 36, 36)


class EveryBlock(FlowCut):
    """FlowCut that may cut at every block, so that it cuts early in models of four blocks too."""

    every: ClassVar[int] = 1


@pytest.mark.parametrize("case", ["CLIP vision", "LLaVA vision", "ViLT"])
def test_early_cuts_conform(case: str) -> None:
    properties = ("counts", "protected", "mass", "indices", "batch", "meta", "half")
    cases = [one for one in CASES if one.name == case]
    findings = [*check(EveryBlock, cases=cases, properties=properties)]
    assert {finding.status for finding in findings} == {OK}, [f.line() for f in findings]
