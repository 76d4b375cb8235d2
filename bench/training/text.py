"""The word-level tokenizer of `clip-emoji`: one token a word, learned from the captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# <eos> must not be token 2: transformers' CLIP then pools at the largest id instead of at <eos>.
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")


def build_tokenizer(texts: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that lower-cases, drops punctuation and adds <bos> … <eos>."""
    clean = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), behavior="removed")
    counts = Counter(
        word for text in texts for word, _ in split.pre_tokenize_str(clean.normalize_str(text))
    )
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *ordered])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = clean, split
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=length,
        padding_side="right",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def drop_keywords(text: str, rng: torch.Generator) -> str:
    """Keep the label of "label: a, b, c"; half the time keep and shuffle some keywords only."""
    label, _, tail = text.partition(": ")
    words = tail.split(", ") if tail else []
    if not words or float(torch.rand(1, generator=rng)) < 0.5:
        return text
    count = int(torch.randint(0, len(words) + 1, (1,), generator=rng))
    chosen = torch.randperm(len(words), generator=rng)[:count].tolist()
    return f"{label}: {', '.join(words[i] for i in chosen)}"
