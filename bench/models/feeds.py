"""How BLIP and ViLT are asked: answers, captions, judgements, scores of matches.

A sample is prepared alone and runs beside others of exactly its shape. So no text and no image is
padded, and what a model says does not depend on who else is in the batch: BLIP's decoder, as
transformers runs it, would read the padding of a question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from bench.core.errors import BenchError
from bench.models.loaded import placed

if TYPE_CHECKING:
    from torch import Tensor

    Answer = Callable[[list[list[Any]], list[str], int], list[str]]

T = TypeVar("T")
CAPTION_TOKENS = 35  # what BLIP's authors cut a caption to when they score its match


def in_groups(
    samples: Sequence[Mapping[str, Tensor]], say: Callable[[dict[str, Tensor]], Sequence[T]]
) -> list[T]:
    """Run samples (1,...) of one shape together; return what is said in the order of the samples.

    Args:
        samples: one mapping a sample, every tensor with a leading 1.
        say: a batch -> one result a row.
    """
    import torch

    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        shape = tuple((key, tuple(part.shape)) for key, part in sorted(sample.items()))
        groups.setdefault(shape, []).append(i)
    found: dict[int, T] = {}
    for rows in groups.values():
        keys = samples[rows[0]].keys()
        batch = {key: torch.cat([samples[i][key] for i in rows]) for key in keys}
        found.update(zip(rows, say(batch), strict=True))
    return [found[i] for i in range(len(samples))]


def _one(name: str, images: Sequence[Any]) -> Any:
    if len(images) != 1:
        raise BenchError(f"{name} looks at one image with each text, not at {len(images)}")
    return images[0].convert("RGB")


def _prepared(name: str, model: Any, processor: Any) -> Callable[..., list[dict[str, Tensor]]]:
    """Images of each sample and texts -> arguments of each sample alone."""
    longest = _longest(model)

    def prepare(images: list[list[Any]], texts: list[str]) -> list[dict[str, Tensor]]:
        return [
            dict(
                processor(
                    images=_one(name, own),
                    text=text,
                    truncation=True,
                    max_length=longest,
                    return_tensors="pt",
                )
            )
            for own, text in zip(images, texts, strict=True)
        ]

    return prepare


def _longest(model: Any) -> int:
    """Tokens that the model's text side has positions for."""
    config = getattr(model.config, "text_config", model.config)
    return int(config.max_position_embeddings)


def spoken(name: str, model: Any, processor: Any) -> Answer:
    """BLIP's answers to questions, or captions that go on from a prompt."""
    prepare, words = _prepared(name, model, processor), processor.tokenizer
    captions = not hasattr(model, "text_encoder")

    def answer(images: list[list[Any]], texts: list[str], new: int) -> list[str]:
        def say(batch: dict[str, Tensor]) -> list[str]:
            inputs = placed(model, batch)
            # a question's answer begins with one start token; a caption with the prompt, whose
            # first token is replaced by the start and whose last, the end of text, is cut off
            ahead = inputs["input_ids"].shape[1] - 1 if captions else 1
            out = model.generate(**inputs, max_new_tokens=new, do_sample=False, num_beams=1)
            said: list[str] = words.batch_decode(out[:, ahead:], skip_special_tokens=True)
            return [text.strip() for text in said]

        return in_groups(prepare(images, texts), say)

    return answer


def chosen(name: str, model: Any, processor: Any) -> Answer:
    """ViLT's answers to questions: one of those that it was trained on, however long."""
    prepare = _prepared(name, model, processor)

    def answer(images: list[list[Any]], texts: list[str], new: int) -> list[str]:
        def say(batch: dict[str, Tensor]) -> list[str]:
            best = model(**placed(model, batch)).logits.argmax(-1).tolist()
            return [str(model.config.id2label[i]) for i in best]

        return in_groups(prepare(images, texts), say)

    return answer


def judging(
    name: str, model: Any, processor: Any
) -> Callable[[list[list[Any]], list[str]], Tensor]:
    """ViLT's judgement of a statement about several images: logits (B,classes)."""
    import torch

    wanted, longest = int(model.config.num_images), _longest(model)

    def prepare(images: Sequence[Any], text: str) -> dict[str, Tensor]:
        if len(images) != wanted:
            raise BenchError(f"{name} judges {wanted} images with each text, not {len(images)}")
        shown = [image.convert("RGB") for image in images]
        pixels = processor.image_processor(shown, return_tensors="pt")
        said = processor.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        return {**said, **{key: part[None] for key, part in pixels.items()}}

    def judge(images: list[list[Any]], texts: list[str]) -> Tensor:
        samples = [prepare(own, text) for own, text in zip(images, texts, strict=True)]
        return torch.stack(in_groups(samples, lambda batch: model(**placed(model, batch)).logits))

    return judge


def padded(words: Any, texts: Sequence[str], **more: Any) -> dict[str, Tensor]:
    """Ids and mask of texts by a tokenizer, padded on its side to the longest."""
    return dict(
        words(list(texts), padding=True, return_token_type_ids=False, return_tensors="pt", **more)
    )


def teaching(model: Any, processor: Any) -> Callable[..., dict[str, Tensor]]:
    """Samples with what is right -> arguments of a model with `labels`, padded on the right."""
    import torch

    words = processor.tokenizer

    def teach(images: list[list[Any]], texts: list[str], answers: list[str]) -> dict[str, Tensor]:
        shown = [image.convert("RGB") for own in images for image in own]
        pixels = processor.image_processor(shown, return_tensors="pt")["pixel_values"]
        if not hasattr(model, "text_decoder"):  # one of its classes is right
            if len(images[0]) > 1:
                pixels = pixels.unflatten(0, (len(images), -1))
            labels = torch.tensor([model.config.label2id[answer] for answer in answers])
            return {**padded(words, texts), "pixel_values": pixels, "labels": labels}
        captions = not hasattr(model, "text_encoder")
        ahead = [f"{text} ".lstrip() for text in texts] if captions else [""] * len(texts)
        said = padded(words, [begun + answer for begun, answer in zip(ahead, answers, strict=True)])
        ids, there = said["input_ids"], said["attention_mask"]
        ids[:, 0] = model.config.text_config.bos_token_id
        labels = ids.masked_fill(there == 0, -100)
        if captions:
            given = {"input_ids": ids, "attention_mask": there}
        else:
            given = {
                **padded(words, texts),
                "decoder_input_ids": ids,
                "decoder_attention_mask": there,
            }
        return {**given, "pixel_values": pixels, "labels": labels}

    return teach


def matching(model: Any) -> dict[str, Any]:
    """BLIP's features and scores of matches, as fields of `Loaded`; they need no processor.

    Tokens of a reduced image carry log sizes, where attention uses them, in one more channel, so
    that a match can be scored long after the image was encoded.
    """
    import torch
    from torch.nn.functional import normalize

    from bench.engine.families.blip import reading

    width = int(model.config.vision_config.hidden_size)

    def encode_images(pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.vision_model(**placed(model, {"pixel_values": pixels})).last_hidden_state
        features = normalize(model.vision_proj(tokens[:, 0]), dim=-1)
        sizes = getattr(model.vision_model, "_size_bias", None)  # of the present reduced pass
        bias = None if sizes is None else sizes(tokens.dtype)
        return features, tokens if bias is None else torch.cat([tokens, bias[:, 0].mT], -1)

    def encode_texts(inputs: Mapping[str, Tensor]) -> Tensor:
        first = model.text_encoder(**placed(model, inputs)).last_hidden_state[:, 0]
        return normalize(model.text_proj(first), dim=-1)

    def match(tokens: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens = placed(model, {"tokens": tokens})["tokens"]
        bias = tokens[:, None, None, :, width] if tokens.shape[-1] > width else None
        with reading(model.text_encoder, lambda dtype: bias):
            read = model.text_encoder(
                **placed(model, inputs), encoder_hidden_states=tokens[..., :width]
            )
        logits: Tensor = model.itm_head(read.last_hidden_state[:, 0])[:, 1]
        return logits

    return {"encode_images": encode_images, "encode_texts": encode_texts, "match": match}


def captions_of(model: Any, processor: Any) -> Callable[[list[str]], dict[str, Tensor]]:
    """Texts -> ids and mask, padded on the right to the longest."""
    longest = min(CAPTION_TOKENS, _longest(model))

    def tokenizer(texts: list[str]) -> dict[str, Tensor]:
        return padded(processor.tokenizer, texts, truncation=True, max_length=longest)

    return tokenizer
