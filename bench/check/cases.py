"""What the kit runs methods on: the towers of small models, and what goes into them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedModel,
    ViltForQuestionAnswering,
)

from bench.check import joint, models, multimodal, tiles
from bench.engine.families.blip import heed_padding
from bench.models.joint import on_meta
from bench.models.noise import asked, noise

Inputs = Mapping[str, Tensor]
COSTED_WORDS = 7  # of a prompt of noise, beside its image


@dataclass(frozen=True)
class Case:
    """One tower of one kind of model.

    Attributes:
        name: for the table.
        build: makes the model.
        tower: which tower is reduced.
        part: the submodule that is called; "" is the whole model.
        masked: padding is masked out, so that those tokens stand for nothing.
        thorough: what costs more than all the rest is tried here.
        batch: samples that run at once.
    """

    name: str
    build: Callable[[], nn.Module]
    tower: str = "vision"
    part: str = ""
    masked: bool = False
    thorough: bool = False
    batch: int = 3

    def inputs(self, model: nn.Module, seed: int) -> Inputs:
        """Three images, or three texts of different length."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.tower == "vision":
                name = "pixel_values" if isinstance(model, PreTrainedModel) else "x"
                return {name: models.images(self.batch)}
            ids = models.token_ids(self.batch)
        return {"input_ids": ids} | ({"attention_mask": (ids != 0).long()} if self.masked else {})

    def alone(self, inputs: Inputs, i: int) -> Inputs:
        """One sample of them."""
        return {name: t[i : i + 1] for name, t in inputs.items()}

    def films(self, inputs: Inputs) -> list[tuple[int, tuple[int, int]]]:
        """Tokens of each video at the projector, with the grid of its frames; empty of images."""
        return []

    def settle(self, tower: Any) -> None:
        """Tell a tower what it otherwise notes of its sequence while a pass runs."""

    def run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """What the tower's reader answers, (B,...)."""
        out = model.get_submodule(self.part)(**inputs)
        if isinstance(out, Tensor):
            return out
        return out.logits if "logits" in out else out.pooler_output  # type: ignore[no-any-return]

    def run_all(self, model: Any) -> None:
        """Run both towers of a dual encoder."""
        images, texts = (replace(self, tower=t).inputs(model, 1) for t in ("vision", "text"))
        model(pixel_values=images["pixel_values"], input_ids=texts["input_ids"])

    @contextlib.contextmanager
    def costed(self, model: nn.Module, valueless: nn.Module) -> Iterator[tuple[Inputs, Inputs]]:
        """Inputs for the model, and shapes of the same size for its copy without values.

        Without values nobody can see what a mask hides, so that shapes come without one.
        """
        inputs = self.inputs(model, 1)
        shown = {name: t for name, t in inputs.items() if name != "attention_mask"}
        yield inputs, {name: t.to("meta") for name, t in shown.items()}


@dataclass(frozen=True)
class Prompted(Case):
    """One tower of a multimodal language model, which answers a prompt with an image in it.

    Attributes:
        prompts: makes padded prompts, so many, from a seed.
        frames: of each prompt's video in `costed`; 0 where it shows an image.
    """

    batch: int = 4
    prompts: Callable[[int, int], Inputs] = multimodal.llava_batch
    frames: int = 0

    def inputs(self, model: nn.Module, seed: int) -> Inputs:
        """Prompts, no two of the same length."""
        return self.prompts(self.batch, seed - 1)

    def films(self, inputs: Inputs) -> list[tuple[int, tuple[int, int]]]:
        """Videos of a batch that are alike count once, as they run."""
        if not self.frames:
            return []
        if "video_grid_thw" in inputs:  # patches are merged two by two
            grids = inputs["video_grid_thw"].tolist()
            return [(t * h * w // 4, (h // 2, w // 2)) for t, h, w in grids]
        frames = inputs["pixel_values_videos"].shape[1]
        return [(9 * frames, (3, 3))]  # 36 patches, pooled

    def alone(self, inputs: Inputs, i: int) -> Inputs:
        """One prompt without its padding."""
        return multimodal.alone(inputs, i)

    def run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """(B,V) the scores of the answer's first token."""
        return model(**inputs).logits[:, -1]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def costed(self, model: nn.Module, valueless: nn.Module) -> Iterator[tuple[Inputs, Inputs]]:
        """A prompt of noise, as costs are counted on."""
        with asked(valueless, COSTED_WORDS, frames=self.frames) as shapes:
            yield noise(model, 1, COSTED_WORDS, frames=self.frames), shapes


@dataclass(frozen=True)
class Joint(Case):
    """One tower of a model in which words and an image meet (BLIP, ViLT).

    Attributes:
        shorter: by how many words each text is shorter than the one before.
        words: of a text, where they stand ahead of the patches in one sequence; else 0.
    """

    shorter: int = 2
    words: int = 0

    def inputs(self, model: nn.Module, seed: int) -> Inputs:
        """Three images, each with a text."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return joint.inputs(model, self.batch, self.words or 13, self.shorter)

    def settle(self, tower: Any) -> None:
        """The prefix of a sequence of words and patches: the words and the class token."""
        if self.words:
            tower.prefix = tower.n_protected = self.words + 1
            tower.shape = (8, 8)

    def run(self, model: Any, inputs: Inputs) -> Tensor:
        """Scores of a match, or of an answer, or of the word that follows.

        ViLT draws its patches in random order, which the global random state is spared.
        """
        answers: list[Any] = []
        decoder = getattr(model, "text_decoder", model)
        hook = decoder.register_forward_hook(lambda module, args, out: answers.append(out))
        with hook, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model(**inputs)
        out = answers[0]
        if "itm_score" in out:
            return out.itm_score  # type: ignore[no-any-return]
        return out.logits[:, -1] if out.logits.dim() > 2 else out.logits  # type: ignore[no-any-return]

    def run_all(self, model: Any) -> None:
        """Run the model, which reads with both of its towers."""
        self.run(model, self.inputs(model, 1))

    @contextlib.contextmanager
    def costed(self, model: nn.Module, valueless: nn.Module) -> Iterator[tuple[Inputs, Inputs]]:
        """As elsewhere; the models' own look at masks is left out."""
        with on_meta(valueless), super().costed(model, valueless) as both:
            yield both


def _answerer(**layers: int) -> nn.Module:
    """BLIP for questions, as it is loaded."""
    model = joint.blip(BlipForQuestionAnswering, **layers)
    heed_padding(model.text_decoder.bert)
    return model  # type: ignore[no-any-return]


# Four blocks each, so that the usual layers 1, 2 and 3 leave the first block alone; fewer where a
# tower is not reduced.
_clip, _siglip = partial(models.clip, text_layers=4), partial(models.siglip, text_layers=4)
_no_class = partial(models.timm_vit, class_token=False, global_pool="avg", fc_norm=True)
_llava, _llava_next = (
    partial(build, blocks=2) for build in (multimodal.llava, multimodal.llava_next)
)
_onevision, _internvl, _smolvlm = (
    partial(build, blocks=2) for build in (tiles.onevision, tiles.internvl, tiles.smolvlm)
)
_text_first = {"text_layers": 4, "vision_layers": 1}
_matcher = partial(joint.blip, BlipForImageTextRetrieval)
_captioner = partial(joint.blip, BlipForConditionalGeneration, text_layers=1)
# deep enough for the layers that methods name as shares of the depth
_deep, _blip2, _blip2_t5, _qwen2_5_vl, _qwen3_vl = (
    partial(build, blocks=12)
    for build in (
        multimodal.llava,
        multimodal.blip2,
        multimodal.blip2_t5,
        multimodal.qwen2_5_vl,
        multimodal.qwen3_vl,
    )
)
_qwen2, _qwen2_5, _qwen3 = (
    partial(build, blocks=2)
    for build in (multimodal.qwen2_vl, multimodal.qwen2_5_vl, multimodal.qwen3_vl)
)
_packed = partial(Prompted, batch=2, prompts=multimodal.qwen_batch)
_paligemma, _gemma3 = (partial(build, blocks=12) for build in (tiles.paligemma, tiles.gemma3))
_prefix, _blocks = tiles.paligemma_batch, tiles.gemma3_batch
_films = tiles.onevision_videos
_crops, _tiles, _padded = tiles.onevision_batch, tiles.internvl_batch, tiles.smolvlm_batch

CASES = (
    Case("timm ViT", models.timm_vit, thorough=True),
    Case("timm no-class", _no_class),
    Case("timm registers", partial(models.timm_vit, reg_tokens=4)),
    Case("timm Eva", models.eva),
    Case("timm BEiT", models.beit),
    Case("CLIP vision", _clip, part="vision_model"),
    Case("CLIP text", _clip, "text", "text_model", thorough=True),
    Case("CLIP text masked", _clip, "text", "text_model", masked=True),
    Case("SigLIP vision", _siglip, part="vision_model"),
    Case("SigLIP text", _siglip, "text", "text_model"),
    Case("HF ViT", models.hf_vit),
    Case("DINOv2", models.dinov2),
    Case("DINOv3", models.dinov3),
    Case("BEiT", models.hf_beit),
    Joint("BLIP vision", _captioner, shorter=0),  # the same tower whatever the head
    Joint("BLIP matching text", partial(_matcher, **_text_first), "text"),
    Joint("BLIP questions text", partial(_answerer, **_text_first), "text"),
    Joint("ViLT", partial(joint.vilt, ViltForQuestionAnswering, num_labels=7), words=9),
    Prompted("LLaVA vision", _llava),
    Prompted("LLaVA projector", _llava, "projector", thorough=True),
    Prompted("LLaVA-NeXT projector", _llava_next, "projector", prompts=multimodal.llava_next_batch),
    Prompted("LLaVA language", _deep, "language", thorough=True),
    Prompted("OneVision vision", _onevision, batch=2, prompts=_crops),
    Prompted("OneVision projector", _onevision, "projector", batch=2, prompts=_crops),
    Prompted("OneVision video", _onevision, "projector", batch=2, prompts=_films, frames=3),
    Prompted("InternVL vision", _internvl, batch=2, prompts=_tiles),
    Prompted("InternVL projector", _internvl, "projector", batch=2, prompts=_tiles),
    Prompted("SmolVLM vision", _smolvlm, batch=2, prompts=_padded),
    Prompted("SmolVLM projector", _smolvlm, "projector", batch=2, prompts=_padded),
    Prompted("PaliGemma language", _paligemma, "language", batch=2, prompts=_prefix),
    Prompted("Gemma 3 language", _gemma3, "language", batch=2, prompts=_blocks),
    _packed("Qwen2-VL vision", _qwen2),
    _packed("Qwen2-VL projector", _qwen2, "projector"),
    _packed("Qwen2.5-VL vision", _qwen2_5),
    _packed("Qwen2.5-VL projector", _qwen2_5, "projector"),
    _packed("Qwen2.5-VL language", _qwen2_5_vl, "language", batch=3),  # as of Qwen2-VL
    _packed("Qwen2.5-VL video", _qwen2_5, "projector", prompts=tiles.qwen_videos, frames=3),
    _packed("Qwen3-VL vision", _qwen3),
    _packed("Qwen3-VL projector", _qwen3, "projector"),
    _packed("Qwen3-VL language", _qwen3_vl, "language", batch=3),
    Prompted("BLIP-2 language", _blip2, "language", prompts=multimodal.blip2_batch),
    Prompted("BLIP-2 T5 language", _blip2_t5, "language", prompts=multimodal.blip2_t5_batch),
)
