"""The second MAC counter: a formula over the recorded token counts, blind to operators.

A transformer block's cost follows from its layers' sizes and from how many tokens it attends over
(before the reduction) and feeds to its MLP (after it). Where this disagrees with the operator
counter, one of the two looked at the wrong thing: reduction that was only masked, an attention
backend nobody counted, a trace that missed a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import nn

from bench.core.errors import BenchError
from bench.engine.families import adapter_for
from bench.engine.tower import Tower
from bench.measure.counts import MacCount

TOLERANCE = 0.005
# The engine may carry the token sizes through fused attention as so many extra channels of q, k
# and v (one used, the rest to please flash kernels).
SIZE_CHANNELS = 8
# The layer that makes queries, by its name in an attention module, and how wide these are.
_QUERY: dict[str, Callable[[nn.Linear], int]] = {
    "qkv": lambda layer: layer.out_features // 3,
    "in_proj": lambda layer: layer.in_features,  # beside an MLP's input
    **dict.fromkeys(("q_proj", "query", "q"), lambda layer: layer.out_features),
}
_KEY_AND_VALUE = ("key", "value", "k", "v")


class CountersDisagree(BenchError):
    """The two MAC counters differ by more than 0.5 %; neither figure is to be trusted."""


def block_macs(
    block: nn.Module,
    n_in: int,
    n_out: int,
    attn_parts: Iterable[str],
    mlp_parts: Iterable[str],
    size_channels: int = 0,
    cross_parts: Iterable[str] = (),
    read: int = 0,
    keys: int | None = None,
    on_places: Mapping[str, int] | None = None,
) -> int:
    """MACs of one Transformer block on one sample.

    Args:
        block: a block of nn.Linear and nn.LayerNorm around one self-attention.
        n_in: tokens its attention sees.
        n_out: tokens its MLP sees.
        attn_parts: names of the submodules on the attention branch, its norm included.
        mlp_parts: likewise of the MLP branch.
        size_channels: extra channels of q, k and v.
        cross_parts: likewise of a branch after the reduction that reads another sequence.
        read: tokens that it reads; 0 where it does not run.
        keys: tokens that each of the `n_in` meets in the attention; by default those themselves.
        on_places: as `Tower.on_places`.

    Raises:
        BenchError: no query projection was found, so the attention's width is unknown.
    """
    before, after = (_modules(block, names) for names in (attn_parts, mlp_parts))
    width, heads, attentions = _queries(block, before)
    rows = {
        id(layer): n for path, n in (on_places or {}).items() for layer in _modules(block, [path])
    }
    products = 2 * n_in * (n_in if keys is None else keys) * (width + heads * size_channels)
    total = attentions * products + sum(
        rows.get(id(layer), n) * _layer_macs(layer, width, heads)
        for n, half in ((n_in, before), (n_out, after))
        for layer in half
    )
    return total + (_cross_macs(block, n_out, read, cross_parts) if read else 0)


def _cross_macs(block: nn.Module, n: int, read: int, parts: Iterable[str]) -> int:
    """MACs of `n` tokens reading so many others: keys and values are made of what is read."""
    modules = _modules(block, parts)
    width, heads, _ = _queries(block, modules)
    keys_and_values = {
        id(layer)
        for module in modules
        for name, layer in module.named_children()
        if name in _KEY_AND_VALUE
    }
    per_token = {True: 0, False: 0}  # by whether the layer runs on what is read
    for layer in modules:
        per_token[id(layer) in keys_and_values] += _layer_macs(layer, width, heads)
    return n * per_token[False] + read * per_token[True] + 2 * n * read * width


def _modules(block: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    return [module for name in names for module in attrgetter(name)(block).modules()]


def _layer_macs(layer: nn.Module, width: int, heads: int) -> int:
    """MACs of one layer on one token; other modules than these cost nothing themselves."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    if isinstance(layer, nn.LayerNorm):
        size = layer.normalized_shape[0]
        times = heads if size * heads == width else 1  # a norm of q or k runs once a head
        return (5 if layer.elementwise_affine else 4) * size * times
    return 0


def _queries(block: nn.Module, modules: Iterable[nn.Module]) -> tuple[int, int, int]:
    """Width of all queries together, the number of heads (1 where no module tells), of attentions.

    Those that stand side by side are alike: width and heads are of one.
    """
    width, heads, attentions = 0, 1, 0
    for module in (block, *modules):
        heads = getattr(module, "num_heads", getattr(module, "num_attention_heads", heads))
        for name, layer in module.named_children():
            if name in _QUERY and isinstance(layer, nn.Linear):
                width = _QUERY[name](layer)
                attentions += 1
    if not width:
        raise BenchError(
            f"no query projection ({', '.join(_QUERY)}) in {type(block).__name__}; "
            "add its name to bench/measure/closed_form.py"
        )
    return width, heads, attentions


def block_forms(model: nn.Module, trace: Any, count: MacCount) -> dict[str, int]:
    """MACs of every block by its dotted name, from the trace alone.

    Args:
        model: a model with an adapter.
        trace: `bench.trace(...)` of the same forward pass; `.tokens[tower]` is [(n_in, n_out)],
            `.layers[tower]` the block of each, `.samples[tower]` the samples (images, crops of an
            image, texts) in the pass, `.reads[tower]` the tokens of another sequence that each
            block reads, `.pairs[tower]` queries and keys of a block with windows.
        count: decides one thing: whether sizes went through attention as extra channels.

    Raises:
        CountersDisagree: the trace is of another model.
    """
    names = {id(module): name for name, module in model.named_modules()}
    forms: dict[str, int] = {}
    for tower, part in adapter_for(model).towers(model).items():
        if not part.attn_parts:  # a projector: no blocks with attention
            continue
        layers, depth = trace.layers[tower], len(part.blocks)
        if set(layers) != set(range(depth)):
            raise CountersDisagree(
                f"the trace has {len(set(layers))} blocks for tower '{tower}', the model has "
                f"{depth}; trace and model do not belong together"
            )
        ran = list(zip(layers, trace.tokens[tower], trace.reads[tower], strict=True))
        for i, block in enumerate(part.blocks):
            # more than once in a pass: images side by side, or one after the other
            runs: list[tuple[tuple[int, int], int, int | None]] = [
                (counts, read, None) for layer, counts, read in ran if layer == i
            ]
            if pairs := trace.pairs[tower].get(i):  # attention runs by windows, the MLP by images
                runs = [((0, n_out), read, 0) for (_, n_out), read, _ in runs]
                runs += [((queries, 0), 0, keys) for queries, keys in pairs]
            forms[names[id(block)]] = _form(block, part, runs, trace.samples[tower], count, names)
    return forms


def _form(
    block: nn.Module,
    part: Tower,
    runs: Sequence[tuple[tuple[int, int], int, int | None]],
    samples: int,
    count: MacCount,
    names: dict[int, str],
) -> int:
    """MACs of a block in all its runs.

    Sizes go through attention as extra channels or not; which of the two, the counted MACs tell.
    """
    parts, counted = (part.attn_parts, part.mlp_parts), _counted(count, names[id(block)])
    places = part.on_places(block)
    plain, wider = (
        samples
        * sum(
            block_macs(block, n_in, n_out, *parts, extra, part.cross_parts, read, keys, places)
            for (n_in, n_out), read, keys in runs
        )
        for extra in (0, SIZE_CHANNELS)
    )
    return wider if abs(wider - counted) < abs(plain - counted) else plain


def _counted(count: MacCount, block: str) -> int:
    """What the operators say a block costs, the reduction in it left out."""
    return count.by_module.get(block, 0) - count.reduction_by_module.get(block, 0)


def closed_form(model: nn.Module, trace: Any, count: MacCount) -> int:
    """Total MACs with every block's share from the formula.

    What lies outside the blocks (embedding, final norm, heads) and the reduction's own cost have no
    closed form worth having: they are taken from `count`. Arguments as for `block_forms`.
    """
    forms = block_forms(model, trace, count)
    return count.total - sum(_counted(count, name) for name in forms) + sum(forms.values())


def check_counters(model: nn.Module, trace: Any, count: MacCount) -> int:
    """Compare both counters, block by block and in total; return the closed form's total.

    Raises:
        CountersDisagree: they differ by more than 0.5 %; the message names the block.
    """
    for name, form in block_forms(model, trace, count).items():
        _agree(f"block '{name}'", _counted(count, name), form)
    total = closed_form(model, trace, count)
    _agree("the whole model", count.total, total)
    return total


def _agree(where: str, counted: int, form: int) -> None:
    if abs(counted - form) > TOLERANCE * max(counted, form):
        raise CountersDisagree(
            f"the MAC counters differ in {where}: the operators say {counted:,}, the closed form "
            f"from the recorded token counts {form:,}; use neither before this is explained"
        )
