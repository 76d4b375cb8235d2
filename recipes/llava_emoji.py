"""Train `llava-emoji`: a small LlavaForConditionalGeneration on scenes of emoji drawings.

The image tower begins as that of `clip-emoji`; projector and language model
are trained from scratch, on answers. All questions about a scene share a sequence: each sees the
image and itself, never another question, and its positions follow the image's. At last, positions
have gaps: a model that saw images at the same positions only goes by these, and nothing could be
taken out of its prompt.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models import catalogue
from bench.models.multimodal import describe
from bench.tasks import scenes, vqa
from bench.tasks.pictures import Arrays
from recipes.augment import image_processor, normalise
from recipes.phases import Phase, Rates, Scratch, either, train_phases

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>")
PAD, UNKNOWN, BOS, EOS, IMAGE = range(len(SPECIAL))
PATCHES = 256
TEMPLATE = (
    "<bos>{% for part in messages[0]['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)
SCENES, BATCH = 8192, 16  # an "epoch", and scenes a step
LOW_EPOCHS, FULL_EPOCHS = 4.0, 0.6
GAPS_EPOCHS, GAPS_RATE = 0.35, 7e-4  # then with gaps in the positions
DEPICTED, NAMED_AT = 0.5, 3  # weight of naming what an image token depicts, after which layer
QUESTIONS = ("what", "what", "there", "there", "there", "many", "where", "where", "caption")


def build_processor() -> Any:
    """What makes arguments of images and questions: a token a word, 256 an image."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *scenes.words()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlavaProcessor(
        image_processor=image_processor(CLIPImageProcessor, scenes.SIDE, do_center_crop=False),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<bos>",
            eos_token="<eos>",
            additional_special_tokens=["<image>"],
            padding_side="left",
        ),
        patch_size=scenes.SIDE // math.isqrt(PATCHES),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(vocabulary: int) -> Any:
    """An untrained `llava-emoji` around the image tower of `clip-emoji`: 256 image tokens."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    clip = catalogue.load("embedded:clip-emoji").model
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    config = LlavaConfig(
        vision_config=clip.config.vision_config.to_dict(),
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = EOS
    return model


class Batch:
    """Scenes with all their questions: the arguments of the model, and what it should say."""

    def __init__(
        self, words: Any, rng: np.random.Generator, patches: int = PATCHES, gaps: bool = False
    ) -> None:
        """Compose `BATCH` scenes, whose images the language model sees as so many tokens.

        With `gaps` the positions of an image's tokens are those they would have if some of the
        tokens were not there, and the words' follow them.
        """
        self.side = math.isqrt(patches)
        rows, images, depicted = [], [], []
        for _ in range(BATCH):
            image, objects = scenes.compose(rng)
            turns = [scenes.ask(kind, objects, rng) for kind in QUESTIONS]
            rows.append([self._turn(words, *turn) for turn in turns])
            images.append(image)
            depicted.append(scenes.depicted(objects, self.side).flatten())
        self.pixels = normalise(np.stack(images))
        longest = max(sum(len(ids) for ids, _ in row) for row in rows)
        shape, head = (BATCH, 1 + patches + longest), 1 + patches
        self.text = torch.full((BATCH, longest), PAD)
        self.answers = torch.full(shape, -100)
        names = words.convert_tokens_to_ids(["<pad>", *scenes.NAMES.values()])
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

    @staticmethod
    def _places(rng: np.random.Generator, gaps: bool) -> Tensor:
        """Position of each of the `PATCHES` tokens of a whole image, counted from its first."""
        if not gaps:
            return torch.arange(PATCHES)
        there = rng.random(PATCHES) < rng.uniform(0.1, 1.0)
        return torch.from_numpy(np.maximum(there.cumsum() - 1, 0))

    def _grid(self) -> Tensor:
        """Where each image token (T,) is among the `PATCHES` of a whole image, row by row."""
        full_side = math.isqrt(PATCHES)
        at = torch.arange(self.side) * (full_side // self.side)
        return (at[:, None] * full_side + at).flatten()

    @staticmethod
    def _turn(words: Any, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of a question and its answer, and how many of them are the answer's."""
        spoken = [*words(answer)["input_ids"], EOS]
        return [*words(question)["input_ids"], *spoken], len(spoken)


def seen_by(model: Any, pixels: Tensor, side: int) -> Tensor:
    """The image tokens (B,side²,C) of the language model, neighbours averaged to so many."""
    tower = model.model.vision_tower(pixels, output_hidden_states=True)
    patches = tower.hidden_states[-2][:, 1:]
    full_side = math.isqrt(patches.shape[1])
    grid = patches.transpose(1, 2).unflatten(2, (full_side, full_side))
    pooled = F.avg_pool2d(grid, full_side // side).flatten(2).transpose(1, 2)
    tokens: Tensor = model.model.multi_modal_projector(pooled)
    return tokens


def loss_of(model: Any, batch: Batch, device: str) -> Tensor:
    """Mean cross entropy of the answers' tokens, and of what each image token depicts."""
    mask = torch.zeros(batch.seen.shape).masked_fill(~batch.seen, torch.finfo(torch.float32).min)
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        image = seen_by(model, batch.pixels.to(device), batch.side)
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


def score(
    model: Any, processor: Any, asked: vqa.QuestionAnswering, blank: bool = False
) -> dict[str, float]:
    """Share of right answers in percent, in all and by kind; `blank` shows a white image."""
    model.eval()
    loaded = describe("llava-emoji", model, {}, processor)
    white = np.full((len(asked), scenes.SIDE, scenes.SIDE, 3), 255, np.uint8)
    pictures = Arrays(white, "white") if blank else asked.pictures
    shown = vqa.QuestionAnswering(asked.name, asked.version, pictures, asked.questions)
    return {name: metric.value for name, metric in shown.evaluate(loaded).metrics.items()}


def train(settings: Scratch) -> dict[str, float]:
    """Train, write `llava_emoji/` in the settings' folder, and return its scores on the test."""
    settings = settings.begun()
    watched, asked = vqa.emoji(300, seed=1), vqa.emoji()
    processor = build_processor()
    words = processor.tokenizer
    model = build(len(words)).to(settings.device)
    model.set_attn_implementation("eager")  # torch's fused one is slow backwards on a CPU

    def loss(gaps: bool, pixels: int, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=rng))
        batch = Batch(words, np.random.default_rng(seed), (pixels // 4) ** 2, gaps)
        return loss_of(model, batch, settings.device)

    def watch() -> dict[str, float]:
        return score(model, processor, watched)

    low = either(settings.low_epochs, LOW_EPOCHS)
    full = either(settings.epochs, FULL_EPOCHS)
    phases = [Phase(scenes.SIDE // 2, low, BATCH)] if low else []
    train_phases(
        settings,
        model,
        SCENES,
        lambda _, pixels, rng: loss(False, pixels, rng),
        watch,
        [*phases, Phase(scenes.SIDE, full, BATCH)],
        # Muon computes in bfloat16, which costs a CPU without such instructions more than the rest.
        Rates(matrix=None, other=1.5e-3),
    )
    train_phases(
        replace(settings, out=settings.out / "gaps").begun(),
        model,
        SCENES,
        lambda _, pixels, rng: loss(True, pixels, rng),
        watch,
        [Phase(scenes.SIDE, GAPS_EPOCHS, BATCH)],
        Rates(matrix=None, other=GAPS_RATE, warmup_steps=10),
    )
    model.set_attn_implementation("sdpa")
    folder = settings.out / "llava_emoji"
    model.half().save_pretrained(folder)
    model.float()  # scored as it is read back: the weights rounded to half precision
    processor.save_pretrained(folder)
    test, blank = score(model, processor, asked), score(model, processor, asked, blank=True)
    return {**test, **{f"blank_{name}": value for name, value in blank.items()}}
