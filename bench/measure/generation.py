"""What an answer of a multimodal language model costs, stage by stage.

Stages: "vision" (image encoder), "projector" (with whatever lies between encoder and language
model), "prefill" (the prompt through the language model, its last token through the head; where an
encoder reads the prompt, with the decoder's first token), "decode" (one further token). MACs and
cache bytes need shapes only, so that a 13B runs in seconds on the meta device; times are of
`generate()` itself, the reduced and the plain one in turn.

    stage_macs(model, inputs).macs["decode"]
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.engine.families import adapter_for
from bench.engine.forward import runs
from bench.measure.blocks import Blocks, Limits, Sample
from bench.measure.latency import take_all
from bench.measure.macs import count_macs
from bench.measure.timing import Paired

STAGES = ("vision", "projector", "prefill", "decode")
TIMES = ("vision", "prefill", "ttft", "decode", "end_to_end")
BATCH_TIMES = ("ttft", "decode", "end_to_end")  # what a batch of prompts has as a whole
ANSWER = "end_to_end"  # the stage that holds all others
STACKS = ("language", "decoder")  # towers of a language model: T5 has both


@dataclass(frozen=True)
class StageMacs:
    """MACs of each stage, "decode" a token, and the bytes that the prompt leaves in the cache."""

    macs: dict[str, int]
    kv_bytes: int

    @property
    def prompt(self) -> int:
        """MACs until the first token."""
        return sum(n for stage, n in self.macs.items() if stage != "decode")


def stage_macs(model: nn.Module, inputs: Mapping[str, Any]) -> StageMacs:
    """Count an answer's stages; `inputs` is one prompt as for `model.generate()`.

    As there, the head computes nothing but the next token.
    """
    towers: Any = adapter_for(model).towers(model)
    names = {id(module): name for name, module in model.named_modules()}
    arguments = {**inputs, **_last_alone(speaker(model)), "use_cache": True}
    spoken: list[Any] = []
    hook = speaker(model).register_forward_hook(lambda *call: spoken.append(call[-1]))
    try:
        counted = count_macs(model, **arguments)
    finally:
        hook.remove()

    def of(module: nn.Module) -> int:
        return counted.by_module.get(names[id(module)], 0)

    vision = of(towers["vision"].part)
    vision -= sum(of(module) for module in towers["projector"].mappers)
    language = sum(of(part) for part in language_parts(model, towers))
    macs = {
        "vision": vision,
        "projector": counted.total - vision - language,
        "prefill": language,
    }
    kv_bytes = bytes_of(spoken[0][cache_name(speaker(model))])
    macs["decode"] = count_macs(speaker(model), **next_token(model, inputs, spoken[0])).total
    return StageMacs(macs, kv_bytes)


def _last_alone(model: nn.Module) -> dict[str, int]:
    """The argument that keeps a language model's head to the last token, where it takes one."""
    known = inspect.signature(type(model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def speaker(model: Any) -> Any:
    """The part whose forward pass makes one token after another: a BLIP-2's language model."""
    inner = getattr(model, "language_model", None)
    return inner if hasattr(inner, "generate") else model


def language_parts(model: Any, towers: Any) -> list[nn.Module]:
    """What runs a prompt and says the next token: the decoder and the head, or T5's two stacks."""
    stacks = [towers[name].part for name in STACKS if name in towers]
    return [*stacks, speaker(model).get_output_embeddings()]


def bytes_of(cache: Any) -> int:
    """Bytes of keys and values in all layers, also of those that a decoder read of an encoder."""
    parts = ("self_attention_cache", "cross_attention_cache")
    caches = [getattr(cache, name) for name in parts if hasattr(cache, name)] or [cache]
    layers = [layer for one in caches for layer in one.layers if layer.keys is not None]
    return sum(t.numel() * t.element_size() for la in layers for t in (la.keys, la.values))


def cache_name(speaker: nn.Module) -> str:
    """What transformers calls the cache of keys and values: `cache`, from 5.24 on."""
    known = inspect.signature(type(speaker).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def next_token(model: nn.Module, inputs: Mapping[str, Any], spoken: Any) -> dict[str, Any]:
    """The arguments of `speaker(model)` for the token after a prompt without padding.

    `spoken` is what it said to the prompt.
    """
    name = cache_name(speaker(model))
    arguments = {name: spoken[name], "use_cache": True}
    ids = torch.ones_like(inputs["input_ids"][:, :1])
    if "encoder_last_hidden_state" not in spoken:
        return {**arguments, "input_ids": ids}
    encoded = (spoken.encoder_last_hidden_state,)
    return {**arguments, "decoder_input_ids": ids, "encoder_outputs": encoded}


def filled_share(model: Any, inputs: Mapping[str, Any]) -> float | None:
    """Share of the slots of a batch's cache, over all blocks, that hold a token and no padding.

    Padding is in every batch of unequal prompts; where a method leaves samples unequally long it
    adds to it. None where the language model's pass does not know.
    """
    passes: list[Any] = [run for run in runs(model) if hasattr(run, "filled_share")]
    if not passes:
        return float(inputs["attention_mask"].float().mean())
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    share: float | None = passes[0].filled_share()
    return share


# --- time --------------------------------------------------------------------------------------


def paired_stages(
    plain: nn.Module,
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    new_tokens: int,
    limits: Limits,
    threads: int | None = None,
) -> dict[str, Paired]:
    """Time `generate()` of both models in turn, and its stages by `TIMES`, in milliseconds."""
    sample_a, sample_b = (sampler(side, inputs, new_tokens) for side in (plain, model))
    blocks = Blocks(sample_a, sample_b, limits, ANSWER, watched=False)
    used = take_all(blocks, threads)
    return {stage: blocks.paired(stage, used, clock()) for stage in TIMES}


def sampler(model: nn.Module, inputs: Mapping[str, Any], new_tokens: int) -> Sample:
    """Return a function that times one answer, see `timed`."""
    return lambda: timed(model, inputs, new_tokens)


def clock() -> str:
    """Return the name of the clock that times answers."""
    return "perf_counter, synchronised" if torch.cuda.is_available() else "perf_counter"


def timed(model: Any, inputs: Mapping[str, Any], new_tokens: int) -> dict[str, float]:
    """One call of `generate()` that makes `new_tokens` tokens; milliseconds by stage of `TIMES`.

    "ttft" is the time to the first token, from the call on; "decode" is a token's after the first.
    Clocks at the borders of stages wait for a GPU to be done, which costs each a few microseconds.
    """
    with _clocks(model) as ticks:
        begin = _now()
        model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        end = _now()
    spoken = [stop for _, stop in ticks["token"]]
    return {
        "vision": _total(ticks["vision"]) - _total(ticks["nested"]),
        "prefill": _total([tick for part in STACKS for tick in ticks.get(part, [])[:1]]),
        "ttft": spoken[0] - begin,
        "decode": (spoken[-1] - spoken[0]) / max(len(spoken) - 1, 1),
        "end_to_end": end - begin,
    }


def _total(ticks: list[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in ticks)


@contextmanager
def _clocks(model: Any) -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Note when parts of a model start and stop, in milliseconds."""
    towers: Any = adapter_for(model).towers(model)
    parts = {name: towers[name].part for name in ("vision", *STACKS) if name in towers}
    parts["token"] = speaker(model)
    nested = [("nested", module) for module in towers["projector"].mappers]
    ticks: dict[str, list[tuple[float, float]]] = {name: [] for name in (*parts, "nested")}
    hooks = []
    for name, part in (*parts.items(), *nested):
        began: list[float] = []

        def before(*_: Any, began: list[float] = began) -> None:
            began.append(_now())

        def after(*_: Any, name: str = name, began: list[float] = began) -> None:
            ticks[name].append((began.pop(), _now()))

        hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield ticks
    finally:
        for hook in hooks:
            hook.remove()


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()
