"""Is decoding cheaper after image tokens left the KV cache? A LLaVA-NeXT's stages, timed in turns.

The image encoder is tiny, the language model has the proportions of a Llama; weights are random,
which costs what trained ones cost. 2,928 image tokens: five crops of 576, and 48 newlines.

    python benchmarks/decode.py                    FastV at K=2, half of the image tokens kept
    python benchmarks/decode.py --keep-rate 0.25 --batch 4 --json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer

import bench
from bench.core.errors import BenchError
from bench.measure.blocks import Limits
from bench.measure.generation import paired_stages, stage_macs
from bench.models.noise import noise
from bench.runs.session import twin

WORDS = 36
SHOWN = ("prefill", "ttft", "decode", "end_to_end")


@dataclass(frozen=True)
class Row:
    """One stage: milliseconds without and with the method, and how many times faster it is."""

    stage: str
    plain_ms: float
    reduced_ms: float
    speedup: float
    speedup_ci95: tuple[float, float]
    pairs: int


def model_of(width: int, layers: int) -> Any:
    """A LLaVA-NeXT for images of 672 pixels with random weights."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    torch.manual_seed(0)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width * 43 // 16,  # as Llama-7B: 11008 of 4096
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=[[672, 672]],
        image_token_id=999,
        vision_feature_layer=-2,
    )
    return LlavaNextForConditionalGeneration(config).eval()


def measure(
    method: str, budget: dict[str, Any], model: Any, batch: int, **timing: Any
) -> tuple[list[Row], dict[str, Any]]:
    """Time the stages of both models in turns, and count what they compute and keep."""
    inputs, plain = noise(model, batch, WORDS), twin(model)
    one = noise(model, 1, WORDS)
    before = stage_macs(plain, one)
    with bench.reduced(model, method, **budget):
        after = stage_macs(model, one)
        stages = paired_stages(plain, model, inputs, **timing)
    rows = [
        Row(
            stage,
            stages[stage].a.p50_ms,
            stages[stage].b.p50_ms,
            stages[stage].speedup.median,
            stages[stage].speedup.ci95,
            len(stages[stage].a.samples_ms),
        )
        for stage in SHOWN
    ]
    counted = {
        "decode_gmacs": [side.macs["decode"] / 1e9 for side in (before, after)],
        "kv_mib": [side.kv_bytes / 2**20 for side in (before, after)],
        "prompt_tokens": one["input_ids"].shape[1],
    }
    return rows, counted


def main(
    method: Annotated[str, typer.Option(help="any method of the language model")] = "fastv",
    keep_rate: Annotated[float, typer.Option(help="share of the image tokens kept")] = 0.5,
    layer: Annotated[int, typer.Option(help="block that reduces")] = 2,
    batch: Annotated[int, typer.Option(help="prompts a call")] = 1,
    width: Annotated[int, typer.Option(help="channels of the language model")] = 1024,
    layers: Annotated[int, typer.Option(help="its blocks")] = 12,
    new_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 32,
    pairs: Annotated[int, typer.Option(help="timed pairs")] = 16,
    threads: Annotated[int | None, typer.Option(help="PyTorch threads; default all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Paired time of a reduced LLaVA-NeXT's stages against the plain one's, on this CPU."""
    try:
        rows, counted = measure(
            method,
            {"keep_rate": keep_rate, "layers": [layer]},
            model_of(width, layers),
            batch,
            new_tokens=new_tokens,
            limits=Limits(pairs, warmup=1),
            threads=threads,
        )
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    setting = {
        "method": method,
        "keep_rate": keep_rate,
        "layer": layer,
        "batch": batch,
        "width": width,
        "layers": layers,
        "new_tokens": new_tokens,
        "threads": threads or torch.get_num_threads(),
    }
    if as_json:
        print(json.dumps({**setting, **counted, "rows": [asdict(row) for row in rows]}))
        return
    print(", ".join(f"{key} {value}" for key, value in {**setting, **counted}.items()))
    print("stage        plain ms  reduced ms  speed-up (95 %)    pairs")
    for row in rows:
        low, high = row.speedup_ci95
        print(
            f"{row.stage:11} {row.plain_ms:9.1f}  {row.reduced_ms:10.1f}  "
            f"{row.speedup:.2f} ({low:.2f}-{high:.2f})  {row.pairs:7d}"
        )


if __name__ == "__main__":
    typer.run(main)
