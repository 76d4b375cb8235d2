"""Models by name: what to type, how it is loaded, and where its weights come from.

Names: `embedded:vit-fashion` (trained here, in the repository), `timm:deit_small_patch16_224`,
`timm:NAME@FILE` (weights from a file), a Hugging Face id such as `openai/clip-vit-base-patch16`
(`hf:` in front is optional), or a folder written by `save_pretrained`. With random weights nothing
is downloaded: cost columns need shapes only.

    bench.models.load("timm:vit_tiny_patch16_224", random_weights=True).model
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.model_names import EMBEDDED, FORMS, parse
from bench.model_names import check_name as check_name
from bench.model_shapes import SHAPES, shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what is needed to feed it.

    Attributes:
        name: as the user typed it.
        model: in eval mode, on its device, in its dtype.
        kind: "classifier", "two-tower" (image and text), "encoder", "multimodal" (a language
            model that sees), "answerer" (of questions), "captioner", "matcher" (of images and
            texts, by features and by one look at both), "pair-classifier" (two images, one text).
        image_size: (height, width) in pixels; `channels` of the input image.
        transform: PIL image -> (channels, height, width) float32; None when nobody knows it.
        tokenizer: list of texts -> mapping of (B,L) tensors, or None.
        text_length: tokens in a text, for two-tower models.
        vocabulary: token ids run below this, for models that read.
        prepare: for multimodal models: images of each sample and its question -> the arguments of
            `generate()`, padded on the left; `decode`: new token ids (B,T) -> texts.
        teach: images of each sample, questions, right answers -> the arguments of `model()` with
            `labels`, so that it gives back the loss of the answers.
        example: batch size -> the arguments of a prompt of noise, where the usual ones won't do.
        covers: what a forward pass of it covers, in words.
        answer: images of each sample, questions or prompts, most new tokens -> greedy answers.
        judge: images of each sample, statements -> logits (B,classes).
        encode_images: for matchers: pixels (B,3,H,W) -> features (B,D) of length 1, and tokens
            (B,N,C) for `match`, with one more channel where a reduction left sizes that count.
        encode_texts: for matchers: the tokenizer's mapping -> features (B,D) of length 1.
        match: for matchers: tokens and the tokenizer's mapping -> (B,) logits of "a match".
        provenance: `weights` ("random", "trained here", "path", "hub:ID"), `sha256`, `card`.
    """

    name: str
    model: nn.Module
    kind: str
    image_size: tuple[int, int]
    channels: int = 3
    transform: Callable[[Any], Tensor] | None = None
    tokenizer: Callable[[list[str]], dict[str, Tensor]] | None = None
    text_length: int = 0
    vocabulary: int = 0
    prepare: Callable[[list[list[Any]], list[str]], dict[str, Tensor]] | None = None
    teach: Callable[[list[list[Any]], list[str], list[str]], dict[str, Tensor]] | None = None
    decode: Callable[[Tensor], list[str]] | None = None
    example: Callable[[int], dict[str, Any]] | None = None
    covers: str = ""
    answer: Callable[[list[list[Any]], list[str], int], list[str]] | None = None
    judge: Callable[[list[list[Any]], list[str]], Tensor] | None = None
    encode_images: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    encode_texts: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    match: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None
    end_token: int | None = None
    image_argument: str = "pixel_values"
    classes: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that no accuracy can come from them."""
        return bool(self.provenance.get("weights") == "random")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        if self.covers:
            return self.covers
        if self.kind == "two-tower":
            return f"one image and one text of {self.text_length} tokens, both towers"
        if self.kind == "multimodal":
            return f"one image and {self.text_length} words, until the first token of the answer"
        return "one image through the whole model"

    def placed(
        self, inputs: Mapping[str, Tensor], device: str | torch.device | None = None
    ) -> dict[str, Tensor]:
        """Return inputs on the model's device (or another), in its dtype where not integers."""
        return placed(self.model, inputs, device)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return arguments of `model()`: noise images (B,C,H,W), full-length texts (B,L)."""
        import torch

        if self.example is not None:
            return self.placed(self.example(batch))
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, self.channels, *self.image_size, generator=generator)
        inputs: dict[str, Any] = {self.image_argument: images.to(self.device, self.dtype)}
        if self.kind == "two-tower":
            shape_ = (batch, self.text_length)
            ids = torch.randint(1, max(self.vocabulary - 2, 2), shape_, generator=generator)
            # CLIP reads its text at the first end token, or at the largest id where it has no such
            # token: the last position, so that the text is as long as it can be.
            end = self.vocabulary - 1 if self.end_token in (None, 2) else self.end_token
            ids[ids == end] = 1
            ids[:, -1] = end
            inputs["input_ids"] = ids.to(self.device)
        return inputs


def placed(
    model: nn.Module, inputs: Mapping[str, Tensor], device: str | torch.device | None = None
) -> dict[str, Tensor]:
    """Return inputs on a model's device (or another), in its dtype where not integers."""
    like = next(model.parameters())
    return {
        key: value.to(device or like.device, like.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }


def names() -> list[str]:
    """Return the names that need nothing but this project (and, where said, an optional extra)."""
    return list(EMBEDDED)


def catalogue() -> dict[str, str]:
    """Return every kind of name that `load` takes, with a line about each."""
    known = {name: "by its shape, with --random-weights and without a hub" for name in SHAPES}
    return {**EMBEDDED, **_fine_tuned(), **FORMS, **known}


def _fine_tuned() -> dict[str, str]:
    from bench import model_tuned
    from bench.spec import label

    found = {}
    for name in model_tuned.names():
        about = model_tuned.training(model_tuned.folder_of(name) or Path())
        found[name] = f"fine-tuned with {label(about['method'], about['budget'])}"
    return found


def load(
    name: str,
    *,
    random_weights: bool = False,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    backend: str = "sdpa",
    seed: int = 0,
) -> Loaded:
    """Return the model called `name`, in eval mode.

    Args:
        name: see the module's first lines.
        random_weights: build from the shape alone, with weights drawn from `seed`.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        backend: attention backend, "sdpa" or "eager".
        seed: of random weights.

    Raises:
        BenchError: unknown name, weights that are missing, broken or out of reach, or a model that
            no adapter covers; the message names the fix.
    """
    from bench import model_embedded, model_hf, model_sources, model_timm, model_tuned

    check_name(name, random_weights)
    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "tuned", Path() as folder:
            loaded = model_tuned.load(name, folder, random_weights, seed)
        case "embedded", _:
            loaded = model_embedded.load(name, random_weights, seed)
        case "timm", file:
            loaded = model_timm.load(name, parsed.base, file, random_weights, seed)
        case _, folder:
            source = str(folder or parsed.base)
            loaded = model_hf.load(name, source, random_weights, seed)
    return model_sources.finish(loaded, device, dtype, backend)


def fingerprint(name: str, *, random_weights: bool = False, seed: int = 0) -> str | None:
    """Return the sha256 of the weights without loading them, or None when only `load` can tell.

    Raises:
        BenchError: a weights file is missing or truncated.
    """
    if random_weights:
        return hashlib.sha256(f"random {name} {seed}".encode()).hexdigest()
    from bench import model_embedded, model_tuned

    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "embedded", _:
            return hash_files(model_embedded.files(name))
        case "tuned", Path() as folder:
            return model_tuned.sha256(folder)
        case "timm", Path() as file:
            return hash_files([file])
        case "folder", Path() as folder:
            return hash_files(weight_files(folder))
    return None


def type_of(name: str) -> str:
    """Return the model type in a Hugging Face configuration, "" where there is none here."""
    from bench import embedded, model_embedded, model_tuned
    from bench.model_sources import read_json

    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "tuned", Path() as tuned:
            return type_of(str(model_tuned.training(tuned)["model"]))
        case "embedded", _ if name in model_embedded.FOLDERS:
            file = embedded.path(model_embedded.FOLDERS[name]) / "config.json"
        case "folder", Path() as folder:
            file = folder / "config.json"
        case "hub", _:
            known = shape(parsed.base)
            if known is not None:
                return str(known["model_type"])
            file = _cached_config(parsed.base)
        case _:
            return ""
    return str(read_json(file).get("model_type", "")) if file.is_file() else ""


def _cached_config(hub_id: str) -> Path:
    """Return where the hub's cache has a model's configuration; a path to no file if it has not."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    return Path(cached if isinstance(cached, str) else "")


def learned(name: str) -> dict[str, Path]:
    """Return the files with what methods learned with this model (none for most), by method."""
    from bench import model_embedded, model_tuned

    parsed = parse(name)
    if parsed.kind == "tuned" and parsed.path:
        return model_tuned.learned(parsed.path)
    return model_embedded.learned(name) if parsed.kind == "embedded" else {}


def weight_files(folder: Path) -> list[Path]:
    """Return the configuration and weights files of a `save_pretrained` folder."""
    config = folder / "config.json"
    if not config.is_file():
        raise BenchError(f"{folder} has no config.json: give a folder written by save_pretrained")
    for name in WEIGHT_FILES:
        index = folder / name
        if index.is_file():
            parts = [index]
            if name.endswith(".index.json"):
                shards = set(json.loads(index.read_text())["weight_map"].values())
                parts += [folder / shard for shard in sorted(shards)]
            return [config, *parts]
    raise BenchError(
        f"{folder} has no weights (model.safetensors): copy the file there, "
        "or add --random-weights for the cost columns alone"
    )


def hash_files(files: list[Path]) -> str:
    """Return the sha256 over the files' contents, after a look at each one's completeness."""
    digest = hashlib.sha256()
    for file in files:
        check_file(file)
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def check_file(file: Path) -> None:
    """Raise BenchError when a weights file is missing or is a truncated safetensors file."""
    if not file.is_file():
        raise BenchError(f"weights file {file} is missing: get it again or name another model")
    if file.suffix != ".safetensors":
        return
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, size)))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        need = 8 + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise BenchError(
            f"weights file {file} is truncated or no safetensors file ({size} bytes): get it again"
        ) from None
    if size < need:
        raise BenchError(f"weights file {file} is truncated ({size} of {need} bytes): get it again")
