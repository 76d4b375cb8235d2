"""The word-level tokenizer of `clip-emoji`: one token a word, learned from the captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

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
