"""Questions about a scene in one sequence: what trains the multimodal language models here.

All questions about a scene share a sequence: each sees the image and itself, never another
question, and its positions follow the image's. At last, positions have gaps: a model that saw
images at the same positions only goes by these, and nothing could be taken out of its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models.multimodal import describe
from bench.tasks import scenes, vqa
from bench.tasks.pictures import Arrays
from bench.training.losses import autocast
from recipes.phases import Phase, Rates, Scratch, either, train_phases

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>")
PAD, UNKNOWN, BOS, EOS, IMAGE = range(len(SPECIAL))
TEMPLATE = (
    "<bos>{% for part in messages[0]['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)
DEPICTED, NAMED_AT = 0.5, 3  # weight of naming what an image token depicts, after which layer
QUESTIONS = ("what", "what", "there", "there", "there", "many", "where", "where", "caption")


@dataclass(frozen=True)
class World:
    """What scenes are made of: names of the things, pixels and image tokens of a whole scene."""

    names: tuple[str, ...]
    pixels: int
    patches: int


def build_processor(images: Any, world: World) -> Any:
    """Return what makes arguments of images and questions: a token a word.

    Args:
        images: the image processor.
        world: of the scenes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *scenes.words(world.names)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlavaProcessor(
        image_processor=images,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<bos>",
            eos_token="<eos>",
            additional_special_tokens=["<image>"],
            padding_side="left",
        ),
        patch_size=world.pixels // math.isqrt(world.patches),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(vision_config: Any, hidden: int, wide: int, vocabulary: int, patches: int) -> Any:
    """Return an untrained LlavaForConditionalGeneration with a language model of eight blocks.

    Args:
        vision_config: of the image encoder; the last block but one is read.
        hidden: width of the language model, in heads of 32.
        wide: width inside its blocks.
        vocabulary: number of tokens.
        patches: tokens of an image.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": 8,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = EOS
    return model


class Batch:
    """All questions about some scenes: the words the model reads, and what it should say."""

    def __init__(
        self,
        world: World,
        placed: Sequence[Mapping[int, scenes.Placed]],
        words: Any,
        rng: np.random.Generator,
        patches: int,
        gaps: bool = False,
    ) -> None:
        """Ask about scenes, which the language model sees as so many tokens.

        With `gaps` the positions of an image's tokens are those they would have if some of the
        tokens were not there, and the words' follow them.
        """
        self.side, self.world = math.isqrt(patches), world
        rows, depicted = [], []
        for objects in placed:
            turns = [scenes.ask(kind, objects, rng, world.names) for kind in QUESTIONS]
            rows.append([self._turn(words, *turn) for turn in turns])
            shown = scenes.depicted(objects, self.side, world.pixels, world.names)
            depicted.append(shown.flatten())
        longest = max(sum(len(ids) for ids, _ in row) for row in rows)
        shape, head = (len(rows), 1 + patches + longest), 1 + patches
        self.text = torch.full((len(rows), longest), PAD)
        self.answers = torch.full(shape, -100)
        names = words.convert_tokens_to_ids(["<pad>", *world.names])
        self.depicted = torch.tensor(names)[torch.from_numpy(np.stack(depicted))]
        self.position = torch.zeros(shape, dtype=torch.long)
        places = [self._places(rng, gaps) for _ in rows]
        self.position[:, 1:head] = 1 + torch.stack(places)[:, self._grid()]
        turn = torch.full(shape, -1)
        turn[:, :head] = 0
        for b, row in enumerate(rows):
            at = head
            for number, (ids, answer) in enumerate(row, start=1):
                end = at + len(ids)
                self.text[b, at - head : end - head] = torch.tensor(ids)
                # A token says what follows it.
                self.answers[b, end - answer - 1 : end - 1] = torch.tensor(ids[-answer:])
                self.position[b, at:end] = torch.arange(len(ids)) + 2 + places[b][-1]
                turn[b, at:end] = number
                at = end
        same = (turn[:, :, None] == turn[:, None]) | (turn[:, None] == 0)
        causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
        self.seen = ((same & causal) | torch.eye(shape[1], dtype=torch.bool))[:, None]
        self.head = head

    def _places(self, rng: np.random.Generator, gaps: bool) -> Tensor:
        """Position of each of the tokens of a whole image, counted from its first."""
        if not gaps:
            return torch.arange(self.world.patches)
        there = rng.random(self.world.patches) < rng.uniform(0.1, 1.0)
        return torch.from_numpy(np.maximum(there.cumsum() - 1, 0))

    def _grid(self) -> Tensor:
        """Where each image token (T,) is among those of a whole image, row by row."""
        full_side = math.isqrt(self.world.patches)
        at = torch.arange(self.side) * (full_side // self.side)
        return (at[:, None] * full_side + at).flatten()

    @staticmethod
    def _turn(words: Any, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of a question and its answer, and how many of them are the answer's."""
        spoken = [*words(answer)["input_ids"], EOS]
        return [*words(question)["input_ids"], *spoken], len(spoken)


def pooled(patches: Tensor, side: int) -> Tensor:
    """Return image features (B,N,C) of a square grid with neighbours averaged to side²."""
    full_side = math.isqrt(patches.shape[1])
    grid = patches.transpose(1, 2).unflatten(2, (full_side, full_side))
    return F.avg_pool2d(grid, full_side // side).flatten(2).transpose(1, 2)


def loss_of(model: Any, batch: Batch, patches: Tensor, device: str) -> Tensor:
    """Return the mean cross entropy of the answers' tokens, and of what each image token depicts.

    Args:
        model: a LlavaForConditionalGeneration.
        batch: the questions.
        patches: (B,N,C) features of the image encoder, of whole images.
        device: "cpu" or "cuda".
    """
    mask = torch.zeros(batch.seen.shape).masked_fill(~batch.seen, torch.finfo(torch.float32).min)
    with autocast(device, reads=True):
        image = model.model.multi_modal_projector(pooled(patches, batch.side))
        embed = model.get_input_embeddings()
        first = embed(torch.full((len(image), 1), BOS, device=device))
        out = model.model.language_model(
            inputs_embeds=torch.cat([first, image, embed(batch.text.to(device))], 1),
            attention_mask=mask.to(device),
            position_ids=batch.position.to(device),
            use_cache=False,
            output_hidden_states=True,
        )
        asked = batch.answers >= 0
        logits = model.lm_head(out.last_hidden_state[asked.to(device)]).float()
        parts = model.model.language_model.norm(out.hidden_states[NAMED_AT][:, 1 : batch.head])
        named = model.lm_head(parts).float()
    answered = F.cross_entropy(logits, batch.answers[asked].to(device))
    return answered + DEPICTED * F.cross_entropy(
        named.flatten(0, 1), batch.depicted.flatten().to(device)
    )


@dataclass(frozen=True)
class Lessons:
    """How long a language model learns: passes over so many scenes, in steps of a batch.

    `low` at a quarter of the image tokens, `full` at all, `gaps` with gaps in the positions.
    """

    scenes: int
    batch: int
    low: float
    full: float
    gaps: float
    rate: float = 1.5e-3
    gaps_rate: float = 7e-4


def teach(
    settings: Scratch,
    model: Any,
    lessons: Lessons,
    world: World,
    loss: Callable[[Tensor, int, bool, torch.Generator], Tensor],
    watch: Callable[[], dict[str, float]],
) -> None:
    """Train a model, resuming where it was stopped.

    Args:
        settings: of the command; its epochs go before those of the lessons.
        model: see `build`.
        lessons: how long.
        world: of the scenes.
        loss: numbers (B,) of scenes, image tokens, whether positions have gaps, and a generator.
        watch: returns scores by name.
    """
    model.set_attn_implementation("eager")  # torch's fused one is slow backwards on a CPU
    side, few = world.pixels, world.pixels // 2
    low, full = either(settings.low_epochs, lessons.low), either(settings.epochs, lessons.full)
    phases = [Phase(few, low, lessons.batch)] if low else []

    def seen(pixels: int) -> int:
        return world.patches * pixels**2 // side**2

    train_phases(
        settings,
        model,
        lessons.scenes,
        lambda index, pixels, rng: loss(index, seen(pixels), False, rng),
        watch,
        [*phases, Phase(side, full, lessons.batch)],
        # Muon computes in bfloat16, which costs a CPU without such instructions more than the rest.
        Rates(matrix=None, other=lessons.rate),
    )
    train_phases(
        replace(settings, out=settings.out / "gaps").begun(),
        model,
        lessons.scenes,
        lambda index, pixels, rng: loss(index, seen(pixels), True, rng),
        watch,
        [Phase(side, lessons.gaps, lessons.batch)],
        Rates(matrix=None, other=lessons.gaps_rate, warmup_steps=10),
    )
    model.set_attn_implementation("sdpa")


def score(
    name: str,
    model: Any,
    processor: Any,
    asked: vqa.QuestionAnswering,
    world: World,
    blank: bool = False,
) -> dict[str, float]:
    """Share of right answers in percent, in all and by kind; `blank` shows a white image."""
    model.eval()
    loaded = describe(name, model, {}, processor)
    white = np.full((1, world.pixels, world.pixels, 3), 255, np.uint8)
    pictures = Arrays(white.repeat(len(asked), 0), "white") if blank else asked.pictures
    shown = vqa.QuestionAnswering(asked.name, asked.version, pictures, asked.questions)
    return {name: metric.value for name, metric in shown.evaluate(loaded).metrics.items()}
