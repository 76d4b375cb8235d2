"""Tiny BLIP and ViLT models of the real classes with seeded weights, and inputs for each."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
    ViltModel,
)

from bench.check import joint
from bench.check.joint import END, PATCHES, START, WORDS, blip, vilt

__all__ = ["END", "PATCHES", "START", "WORDS"]


def matcher(text_layers: int = 3) -> Any:
    """BLIP for image-text matching."""
    return blip(BlipForImageTextRetrieval, text_layers)


def answerer() -> Any:
    """BLIP for questions."""
    return blip(BlipForQuestionAnswering)


def captioner() -> Any:
    """BLIP for captions."""
    return blip(BlipForConditionalGeneration)


def vilt_encoder() -> Any:
    """ViLT without a head."""
    return vilt(ViltModel)


def vilt_answerer() -> Any:
    """ViLT for questions."""
    return vilt(ViltForQuestionAnswering, num_labels=7)


def vilt_pairs() -> Any:
    """ViLT for two images and a statement."""
    return vilt(
        ViltForImagesAndTextClassification,
        num_images=2,
        modality_type_vocab_size=3,
        num_labels=2,
    )


def texts(batch: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Random words, each row two shorter than the one before, padded on the right."""
    torch.manual_seed(2)
    return joint.texts(batch, length)


def inputs(model: Any, batch: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Arguments of the model's forward pass."""
    torch.manual_seed(1)
    return joint.inputs(model, batch, length)


def unlike(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with images that fill their pixels unlike each other (ViLT)."""
    pixels = given["pixel_values"]
    mask = torch.ones(*pixels.shape[:-3], *pixels.shape[-2:], dtype=torch.long)
    for row in range(len(mask)):
        mask[row, ..., : 4 * row] = 0 if row else 1
    mask = mask.flip(-1)  # padding is on the right
    return {**given, "pixel_values": pixels * mask.unsqueeze(-3), "pixel_mask": mask}


def run(model: Any, given: dict[str, Tensor]) -> Tensor:
    """What the model says: scores of matches, logits, or tokens and the features behind them."""
    torch.manual_seed(3)  # ViLT draws the order of its patches
    with torch.no_grad():
        name = type(model).__name__
        if name in ("BlipForQuestionAnswering", "BlipForConditionalGeneration"):
            asked = {key: t.clone() for key, t in given.items() if key != "decoder_input_ids"}
            said = model.generate(**asked, max_new_tokens=5, min_new_tokens=5, do_sample=False)
            return said.float()
        out = model(**given)
        for key in ("itm_score", "logits", "pooler_output"):
            if key in out:
                return out[key]
    raise TypeError(name)


# --- processors ----------------------------------------------------------------------------------

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue", "square", "what", "is"]
VOCABULARY += ["this", "?"]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(VOCABULARY)}
    words |= {f"w{i}": i for i in range(len(VOCABULARY), WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


def blip_processor(folder: Path) -> None:
    """Write a processor of small images and a dozen words."""
    from transformers import BlipImageProcessor, BlipProcessor

    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), _tokenizer()).save_pretrained(folder)


def vilt_processor(folder: Path) -> None:
    """Write a processor that keeps an image's shape."""
    from transformers import ViltImageProcessor, ViltProcessor

    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=4)
    ViltProcessor(images, _tokenizer()).save_pretrained(folder)


def prepared(folder: Path, image: Any) -> Tensor:
    """(1,3,H,W) pixels of an image by the folder's own processor."""
    from transformers import AutoImageProcessor

    found = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    return found["pixel_values"]


def read(folder: Path, ids: Tensor) -> str:
    """Tokens as text by the folder's own tokenizer."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    return words.decode(ids, skip_special_tokens=True).strip()


MODELS = {
    "matcher": matcher,
    "answerer": answerer,
    "captioner": captioner,
    "ViLT": vilt_encoder,
    "ViLT answerer": vilt_answerer,
    "ViLT pairs": vilt_pairs,
}


@functools.cache
def built(family: str) -> Any:
    """A model that is built once: whoever reduces it gives it back as it was."""
    return MODELS[family]()


def longer(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample's image and text, the text with three tokens of padding behind it."""
    pad = torch.zeros(1, 3, dtype=torch.long)
    return {
        "pixel_values": given["pixel_values"],
        "input_ids": torch.cat([given["input_ids"], pad], 1),
        "attention_mask": torch.cat([given["attention_mask"], pad], 1),
    }
