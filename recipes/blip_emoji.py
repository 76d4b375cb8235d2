"""Train `blip-emoji`: small BLIPs for questions, captions and matching, on scenes of emoji.

The three share their image encoder and are trained together, as BLIP is: answers, captions,
contrast of images and captions, and whether a caption belongs to its image, against one in which a
thing or a place was exchanged. Then matching alone goes on with a text encoder of its own, against
captions with a thing too few or too many and those of other scenes, which re-ranking has to tell.
The image encoder begins as one that names what patches depict, and goes on naming beside, by a head
that is thrown away; see `scene_encoder`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.families.blip import heed_padding
from bench.models.joint import padded
from bench.models.sources.embedded import COMMON
from bench.tasks import scenes, statements
from recipes import scene_encoder
from recipes.augment import image_processor, normalise
from recipes.phases import Rates, Scratch, either, train_phases

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
PAD, UNKNOWN, CLS, SEP, MASK, DEC = range(len(SPECIAL))
TEXT_BLOCKS = 2
SCENES, BATCH = 8192, 16  # a "pass", and scenes a step
EPOCHS, MATCH_EPOCHS = 2.0, 0.4
DEPICTED = 0.5
FOLDERS = {"vqa": "blip_emoji_vqa", "caption": "blip_emoji_caption", "match": "blip_emoji_match"}
PACKED = "blip_emoji"  # all three, with what they share once


def words() -> list[str]:
    """Every word that these models and ViLT know."""
    return sorted({*scenes.words(), *statements.words(), "a"})


def tokenizer() -> Any:
    """A BERT tokenizer whose pieces are whole words."""
    from transformers import BertTokenizer

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words()])}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True)


class Blips(nn.Module):
    """The three models around one image encoder and one text encoder."""

    def __init__(self, vocabulary: int) -> None:
        """Build them, untrained."""
        super().__init__()
        from transformers import BlipConfig
        from transformers.models.blip import modeling_blip as blip

        vision = scene_encoder.shape()
        width = vision["hidden_size"]
        shape = ("hidden_size", "num_attention_heads", "intermediate_size")
        text = {
            **{key: vision[key] for key in shape},
            "vocab_size": vocabulary,
            "encoder_hidden_size": width,
            "num_hidden_layers": TEXT_BLOCKS,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": PAD,
            "bos_token_id": DEC,
            "eos_token_id": SEP,
            "sep_token_id": SEP,
            "label_smoothing": 0.0,
        }
        config = BlipConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=64,
            image_text_hidden_size=64,
            label_smoothing=0.0,
        )
        self.vqa = blip.BlipForQuestionAnswering(config)
        self.caption = blip.BlipForConditionalGeneration(config)
        self.match = blip.BlipForImageTextRetrieval(config)
        for other in (self.caption, self.match):
            other.vision_model = self.vqa.vision_model
        self.match.text_encoder = self.vqa.text_encoder
        heed_padding(self.vqa.text_decoder.bert)
        self.named = scene_encoder.head()
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # of the contrastive loss

    def begin(self, begun: scene_encoder.Tower, words: Any) -> None:
        """Take over what the image encoder knows, and its words; text looks for their like."""
        self.vqa.vision_model.load_state_dict(begun.model.state_dict())
        self.named.load_state_dict(begun.named.state_dict())
        known = begun.words()
        ids = words.convert_tokens_to_ids(list(known))
        decoders = (self.vqa.text_decoder.bert, self.caption.text_decoder.bert)
        for text in (self.vqa.text_encoder, *decoders):
            table = text.embeddings.word_embeddings.weight
            nn.init.normal_(table, std=scene_encoder.WORD_SPREAD)
            table.data[ids] = torch.stack(list(known.values()))
            for block in text.encoder.layer:
                across = block.crossattention
                attention = across.self
                scene_encoder.look_for_like(
                    attention.query, attention.key, attention.value, across.output.dense
                )

    @torch.no_grad()
    def say_it_in_one_logit(self) -> None:
        """Subtract the logit of "no match" from both: re-ranking reads the other one alone."""
        for part in self.match.itm_head.parameters():
            part -= part[:1].clone()

    def see(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,N,C) image tokens, class token first."""
        tokens: Tensor = self.vqa.vision_model(pixel_values=pixels).last_hidden_state
        return tokens

    def answering(self, image: Tensor, asked: Mapping[str, Tensor], answers: Tensor) -> Tensor:
        """Cross entropy of the answers (Q,T); as many questions an image, side by side."""
        each = image.repeat_interleave(len(answers) // len(image), 0)
        read = self.vqa.text_encoder(**asked, encoder_hidden_states=each).last_hidden_state
        return spoken(self.vqa.text_decoder, answers, read, asked["attention_mask"])

    def captioning(self, image: Tensor, captions: Tensor) -> Tensor:
        """Cross entropy of the captions (B,T)."""
        return spoken(self.caption.text_decoder, captions, image, None)

    def contrast(self, image: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """Symmetric contrastive loss of images and their captions."""
        match = self.match
        a = F.normalize(match.vision_proj(image[:, 0]), dim=-1)
        b = F.normalize(match.text_proj(match.text_encoder(**text).last_hidden_state[:, 0]), dim=-1)
        logits, rows = self.log_scale.exp() * a @ b.T, torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2

    def matching(self, image: Tensor, text: Mapping[str, Tensor], right: Tensor) -> Tensor:
        """Cross entropy of whether captions (nB,T) belong to images (B,N,C), which come n times."""
        return F.cross_entropy(self.matched(image, text), right)

    def matched(self, image: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """(nB,2) logits of that."""
        each = image.repeat(len(text["input_ids"]) // len(image), 1, 1)
        read = self.match.text_encoder(**text, encoder_hidden_states=each).last_hidden_state
        logits: Tensor = self.match.itm_head(read[:, 0])
        return logits


def spoken(decoder: Any, ids: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
    """Mean cross entropy of texts (B,T), first token included, from a decoder that reads `read`."""
    out = decoder(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        encoder_hidden_states=read,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    logits, target = out.logits[:, :-1], ids[:, 1:]
    return F.cross_entropy(logits[target != PAD], target[target != PAD])


def exchanged(
    objects: Mapping[int, scenes.Placed], rng: np.random.Generator
) -> dict[int, scenes.Placed]:
    """The same scene with one thing renamed, or in another place, as a caption might have it."""
    changed, cells = dict(objects), sorted(objects)
    cell = cells[int(rng.integers(len(cells)))]
    free = [other for other in range(4) if other not in objects]
    here = changed.pop(cell)
    if free and rng.integers(2):
        changed[free[int(rng.integers(len(free)))]] = here
        return changed
    name = scenes.another({thing.name for thing in objects.values()}, rng)
    return {**changed, cell: replace(here, name=name)}


def miscounted(
    objects: Mapping[int, scenes.Placed], rng: np.random.Generator
) -> dict[int, scenes.Placed]:
    """The same scene with one thing left out, or with one more."""
    changed, cells = dict(objects), sorted(objects)
    free = [other for other in range(4) if other not in objects]
    if len(cells) > 1 and (not free or rng.integers(2)):
        del changed[cells[int(rng.integers(len(cells)))]]
        return changed
    name = scenes.another({thing.name for thing in objects.values()}, rng)
    cell = free[int(rng.integers(len(free)))]
    return {**changed, cell: replace(objects[cells[0]], name=name)}


class Batch:
    """Scenes with questions, answers, captions, and captions that are not theirs."""

    def __init__(self, rng: np.random.Generator, words: Any) -> None:
        """Compose `BATCH` scenes."""
        images, depicted, asked, answers = [], [], [], []
        captions, others, more = [], [], []
        for _ in range(BATCH):
            image, objects = scenes.compose(rng)
            images.append(image)
            depicted.append(scene_encoder.depicted(objects))
            for kind in scenes.KINDS:
                question, answer = scenes.ask(kind, objects, rng)
                asked.append(question)
                answers.append(answer)
            captions.append(scenes.describe(objects))
            others.append(scenes.describe(exchanged(objects, rng)))
            more.append(scenes.describe(miscounted(objects, rng)))
        self.pixels = normalise(np.stack(images))
        self.depicted = torch.stack(depicted)
        self.asked, self.answers = padded(words, asked), started(words, answers)
        self.captions, self.caption_words = started(words, captions), padded(words, captions)
        self.words, self.claims = words, captions + others + more + captions[1:] + captions[:1]

    def claimed(self, times: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """So many captions an image (times*BATCH,T), the right ones first, and which are right.

        The second are exchanged, the third miscounted, the fourth another scene's.
        """
        count = times * BATCH
        return padded(self.words, self.claims[:count]), (torch.arange(count) < BATCH).long()


def started(words: Any, texts: Sequence[str]) -> Tensor:
    """Ids (B,T) of texts that a decoder says, its start token first."""
    ids = padded(words, texts)["input_ids"]
    ids[:, 0] = DEC
    return ids


def loss_of(models: Blips, batch: Batch) -> Tensor:
    """The sum of all losses of a batch."""
    image = models.see(batch.pixels)
    return (
        models.answering(image, batch.asked, batch.answers)
        + models.captioning(image, batch.captions)
        + models.contrast(image, batch.caption_words)
        + models.matching(image, *batch.claimed(2))
        + DEPICTED * scene_encoder.naming(models.named(image[:, 1:]), batch.depicted)
    )


@torch.inference_mode()
def watch(models: Blips, words: Any, seed: int) -> dict[str, float]:
    """Losses on scenes that were not trained on, and shares of right matches and names."""
    models.eval()
    batch = Batch(np.random.default_rng([seed, 2]), words)
    image = models.see(batch.pixels)
    claims, true = batch.claimed(2)
    right = models.matched(image, claims).argmax(-1) == true
    return {
        "answers": float(models.answering(image, batch.asked, batch.answers)),
        "captions": float(models.captioning(image, batch.captions)),
        "contrast": float(models.contrast(image, batch.caption_words)),
        "match": 100 * float(right.float().mean()),
        "named": scene_encoder.known(models.named(image[:, 1:]), batch.depicted),
    }


def train(settings: Scratch) -> dict[str, float]:
    """Train, write three folders in the settings' folder, and return the last losses."""
    from transformers import BlipImageProcessor, BlipProcessor

    settings = settings.begun()
    begun = scene_encoder.trained(settings)
    words = tokenizer()
    models = Blips(len(words)).to(settings.device)
    models.begin(begun, words)

    def loss(indices: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=rng))
        return loss_of(models, Batch(np.random.default_rng(seed), words))

    epochs = either(settings.epochs, EPOCHS)
    last = train_phases(
        settings,
        models,
        SCENES,
        loss,
        lambda: watch(models, words, seed=1),
        scene_encoder.phases(epochs, BATCH),
        Rates(matrix=None, other=1e-3, known=("vqa.vision_model",)),
    )
    models.match.text_encoder = copy.deepcopy(models.vqa.text_encoder)
    models.vqa.vision_model.requires_grad_(False)

    def matching(_: Tensor, __: int, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=rng))
        batch = Batch(np.random.default_rng(seed), words)
        with torch.no_grad():
            image = models.see(batch.pixels)
        return models.matching(image, *batch.claimed(4)) + models.contrast(
            image, batch.caption_words
        )

    last |= train_phases(
        replace(settings, out=settings.out / "matching").begun(),
        models.match,
        SCENES,
        matching,
        lambda: watch(models, words, seed=1),
        scene_encoder.phases(min(MATCH_EPOCHS, epochs), BATCH),
        Rates(matrix=None, other=3e-4, warmup_steps=20),
    )
    models.say_it_in_one_logit()
    processor = BlipProcessor(image_processor(BlipImageProcessor, scenes.SIDE), words)
    for name, folder in FOLDERS.items():
        model: Any = getattr(models, name)
        model.half().save_pretrained(settings.out / folder)
        model.float()
        processor.save_pretrained(settings.out / folder)
    pack(models, processor, settings.out / PACKED)
    return last


def pack(models: Blips, processor: Any, folder: Path) -> None:
    """Write the three models into one folder, their common parts once; `unpacked` reads it."""
    from safetensors.torch import save_file

    processor.save_pretrained(folder)
    shape = {**models.vqa.config.to_dict(), "architectures": None}
    (folder / "config.json").write_text(json.dumps(shape, indent=2, sort_keys=True) + "\n")
    state: dict[str, Tensor] = {}
    for name in FOLDERS:
        model: Any = getattr(models, name)
        for key, value in model.state_dict().items():
            stored = key if key.split(".")[0] in COMMON else f"{name}.{key}"
            state[stored] = value.detach().cpu().half().clone()
    save_file(state, folder / "model.safetensors")
