"""Models of Hugging Face: an id, a folder that `save_pretrained` wrote, or a known shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from bench.core.errors import BenchError, near_miss
from bench.models import huggingface as hf
from bench.models.catalogue import Source, listing
from bench.models.files import check_settings, folder_named, hash_files, read_mapping, weight_files
from bench.models.guide import offer
from bench.models.joint import ATTENTION, TYPES
from bench.models.loading import fetching, hub_answers, quiet
from bench.models.shapes import shape, shapes
from bench.models.tensors import from_pretrained

if TYPE_CHECKING:
    from bench.models.loaded import Loaded


@dataclass(frozen=True)
class HuggingFace(Source):
    """What no other source takes: a model of transformers, or a mistake (see `check`).

    Attributes:
        model: the name without `hf:`.
        folder: the folder, where the name is one.
    """

    model: str
    folder: Path | None

    precedence = 100  # any name may be one of these

    @classmethod
    def take(cls, name: str) -> Self:
        return cls(name, name.removeprefix("hf:"), folder_named(name))

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        about = "by its shape, with --random-weights and without a hub"
        return {
            "ORG/NAME": "a Hugging Face id: CLIP, SigLIP, ViT, DeiT, BEiT, DINOv2, DINOv3, BLIP, "
            "ViLT, LLaVA, LLaVA-NeXT, LLaVA-NeXT-Video, Video-LLaVA, LLaVA-OneVision, InternVL, "
            "Idefics3, SmolVLM, PaliGemma, Gemma 3, BLIP-2, Qwen2-VL, Qwen2.5-VL, Qwen3-VL",
            "FOLDER": "a folder written by save_pretrained, or by `train --method`",
            **dict.fromkeys(shapes(), about),
        }

    def check(self, random_weights: bool = False) -> None:
        if self.folder is not None:
            check_settings(self.folder)
            return
        if ":" in self.model or ("/" not in self.model and self.model == self.name):
            if shape(self.model) is None:
                raise BenchError(
                    f"unknown model '{self.name}'{near_miss(self.name, listing(), 'list models')}"
                )
            if not random_weights:
                raise BenchError(
                    f"model '{self.name}' has no weights here: add --random-weights for its cost, "
                    f"or give its full Hugging Face id (ORG/{self.name}) or a folder"
                )
            return

        try:
            validate_repo_id(self.model)
        except HFValidationError as error:
            raise BenchError(
                f"no model folder {self.model}: give a folder written by save_pretrained, "
                "or a Hugging Face id (ORG/NAME)"
            ) from error

    def build(self, random_weights: bool, seed: int) -> Loaded:
        local, where = self.folder is not None, str(self.folder or self.model)
        known = random_weights and shape(where) is not None
        on_disk = local or known or not hub_answers()
        with quiet(), fetching(self.name, "Hugging Face", random_weights, self.folder):
            config = hf.configuration(where, on_disk, random_weights and not local)
            auto = hf.class_for(self.name, config)
            attention = ATTENTION if config.model_type in TYPES else "sdpa"
            settings: dict[str, Any] = {"attn_implementation": attention}
            if not hf.speaks(config.model_type):  # those stay as saved: they are large
                settings["dtype"] = torch.float32
            if random_weights:
                torch.manual_seed(seed)
                model = hf.build(auto, config, **settings)
            else:
                sha = self.fingerprint()
                settings = {"dtype": "auto", **settings, "local_files_only": on_disk}
                model = from_pretrained(auto, where, config=config, **settings)
            if random_weights:
                loaded = hf.describe(self.name, model, {"weights": "random"}, None)
            else:
                weights = {"weights": "path" if local else f"hub:{self.model}", "sha256": sha}
                loaded = hf.describe(self.name, model, weights, where, on_disk)
        offer(loaded, lambda name: HuggingFace.take(name).build(random_weights, seed))
        return loaded

    def fingerprint(self) -> str | None:
        return None if self.folder is None else hash_files(weight_files(self.folder))

    def model_type(self) -> str:
        if self.folder is not None:
            file = self.folder / "config.json"
        else:
            known = shape(self.model)
            if known is not None:
                return str(known["model_type"])
            file = _cached_config(self.model)
        return str(read_mapping(file).get("model_type", "")) if file.is_file() else ""

    def family(self) -> str:
        return hf.family_of(self.model_type())


def _cached_config(hub_id: str) -> Path:
    """Return where the hub's cache has a model's configuration; a path to no file if it has not."""
    cached = try_to_load_from_cache(hub_id, "config.json")
    return Path(cached if isinstance(cached, str) else "")
