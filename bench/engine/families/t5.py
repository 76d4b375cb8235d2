"""T5 as the language model of a BLIP-2: the image's tokens are read by its encoder.

The encoder is the tower "language": a method there takes image tokens out of what the encoder
reads. The encoder looks both ways, so that no token is hidden from any other, and knows positions
by a bias on the attention logits alone, which its first block makes for all pairs of tokens. Behind
a removal the pairs that remain keep theirs, or take those of the positions that a method renumbers
to. The decoder's cross-attention reads what is left; the decoder itself is never reduced.

Shape suffixes: B batch, H heads, N tokens of the prompt, M tokens that remain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.core.kinds import DecodeReducer
from bench.core.site import LanguageSite
from bench.engine.families.decoder import LanguagePass
from bench.engine.families.hf import Family
from bench.engine.families.language import LanguageTower
from bench.engine.families.prompt import Prompt, Removal
from bench.engine.masks import both, weighted
from bench.engine.reduction import Reduction
from bench.engine.tower import Run, Tower, original, override

_SELF = ("layer.0.layer_norm", "layer.0.SelfAttention")
ENCODERS = {"T5Stack": Family("language", ("block",), _SELF, ("layer.1",), "final_layer_norm")}


def has_encoder(model: Any) -> bool:
    """Whether a multimodal model's prompt is read by an encoder, and its answer starts anew."""
    return getattr(model.config, "use_decoder_only_language_model", True) is False


def answer_start(model: Any) -> int:
    """The token id with which the decoder of such a model begins an answer."""
    text = model.config.text_config
    start = getattr(text, "decoder_start_token_id", None)
    return int(text.pad_token_id if start is None else start)


def padding_side(model: Any) -> str:
    """Return where a batch's shorter prompts are padded: an answer that follows needs the left.

    An encoder knows tokens by their distance, and a BLIP-2 puts its image ahead of the padded
    words, so that padding between the two would move them apart.
    """
    return "right" if has_encoder(model) else "left"


def begun_answers(model: Any, batch: int) -> dict[str, Tensor]:
    """Return the argument with which a decoder begins answers; none where they follow a prompt."""
    if not has_encoder(model):
        return {}
    return {"decoder_input_ids": torch.full((batch, 1), answer_start(model))}


def answer_begins(model: Any, ids: Tensor) -> int:
    """Return where answers begin in what `generate()` returns for prompts `ids` (B,L)."""
    return 1 if has_encoder(model) else ids.shape[1]  # behind a start token, or the prompt


class EncoderPass(LanguagePass):
    """The state of T5's encoder during one prompt, which the decoder then asks for its mask.

    Attributes:
        of_pairs: (B or 1,H,M,M) the bias by positions that the latest attention added.
    """

    tower: EncoderTower
    of_pairs: Tensor | None

    def __init__(self, tower: LanguageTower, reductions: Sequence[Reduction]) -> None:
        """Nothing is known about a prompt yet.

        Raises:
            Unsupported: a method hides keys from new tokens, which the encoder never sees.
        """
        super().__init__(tower, reductions)
        for reduction in reductions:
            if isinstance(reduction.reducer, DecodeReducer):
                raise Unsupported(
                    f"method '{reduction.reducer.name}' hides the cached keys of a prompt from new "
                    "tokens, and this prompt is read by an encoder"
                )

    def _clear(self) -> None:
        super()._clear()
        self.of_pairs = None

    def _cut_prompt(self, *args: Any, **kw: Any) -> Any:
        out = super()._cut_prompt(*args, **kw)
        self.of_pairs = None  # it is held by nobody while the decoder runs
        return out

    def _behind(self, out: Any, n: int) -> Any:
        """The decoder reads as many tokens as are left."""
        return out

    def block(
        self,
        layer: int,
        block: nn.Module,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """One block, which hands the first one's bias on. (B,N,C) -> (B,M,C), (1,H,N,N), None."""
        x = super().block(layer, block, x, attention_mask, position_bias=position_bias, **kw)
        return x, self.of_pairs if position_bias is None else position_bias, None

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """The bias of the tokens that remain, by their own positions or those they moved to."""
        removal, bias = self._latest(self.layer), kw["position_bias"]
        if removal is None or bias is None:
            return kw
        if not self.rotary:
            at = removal.place if removal.moved is None else removal.place - removal.moved
            left = bias[0][:, at[:, :, None], at[:, None]]
            self.rotary = {"position_bias": left.transpose(0, 1)}
        return {**kw, **self.rotary}

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        removal = self._latest(self.layer)
        return mask if removal is None else self._of_keys(removal, mask is not None, x)

    def _of_keys(self, removal: Removal, padded: bool, x: Tensor) -> Tensor | None:
        """(B,1,1,M) mask that hides padding and empty slots, with the weights of merged tokens."""
        mask = self.tower.mask(removal.filled[:, None, None], x) if padded or self.ragged else None
        return weighted(mask, removal.weight, x.dtype)

    def readable(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """What the decoder may see of the encoder's output `x` (B,M,C), in place of `mask` (B,N).

        Raises:
            Unsupported: the output is not that of the latest prompt.
        """
        removals = self.removals
        if not removals:
            if self.cut is None:
                return mask
            removals = [Removal(0, self.cut.place, self.cut.filled, None, None)]
        B, M = removals[-1].filled.shape
        if x.shape[1] != M or len(x) % B:
            raise Unsupported(
                f"the decoder got {x.shape[1]} tokens of an encoder that left {M} of its latest "
                "prompt: run the encoder under the same reduced() right ahead of it"
            )
        seen = self._of_keys(removals[-1], mask is not None, x)
        # of several answers side by side, each reads its own prompt
        return seen if seen is None else seen.repeat_interleave(len(x) // B, 0)

    def _language_site(self, layer: int, prompt: Prompt) -> LanguageSite:
        """A site whose bias holds the positions' share, and whose anchor is the last word.

        Padding may stand behind the words.
        """
        site, filled = super()._language_site(layer, prompt), prompt.filled
        anchor = filled.shape[1] - 1 - filled.flip(1).to(torch.int8).argmax(1)
        return replace(site, bias=both(self.of_pairs, site.bias), causal=False, anchor=anchor)


class EncoderTower(LanguageTower):
    """The encoder of T5, which reads words and image."""

    pass_class = EncoderPass
    causal = False

    def __init__(self, part: Any, family: Family, model: Any) -> None:
        """Its positions are a bias, which can be that of other positions.

        Raises:
            Unsupported: a version of transformers whose T5 computes attention by itself.
        """
        super().__init__(part, family, model)
        self.renumbers = True
        first: Any = self.blocks[0]
        if not hasattr(first.layer[0].SelfAttention, "scaling"):
            raise Unsupported(
                "T5 of this transformers version asks no attention interface; upgrade transformers "
                "to one that this project is tested with (5.24)"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.part.config.d_model)

    def attend(self, block: Any, x: Tensor, run: Any, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention, residual add; the bias by positions is left in `run`."""
        x, run.of_pairs, _ = block.layer[0](x, attention_mask=mask, **kw)
        return _finite(x)

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP with its norm and residual add."""
        return _finite(block.layer[-1](x))

    def install_more(self, run: Any, stack: contextlib.ExitStack) -> None:
        """As elsewhere; the decoder reads what is left."""
        super().install_more(run, stack)
        decoder = self.model.language_model.decoder
        stack.enter_context(override(decoder, "forward", partial(_read, decoder, run)))

    def projected(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,H,M,D) queries and keys of a block from its input."""
        layer = block.layer[0]
        y, attn = layer.layer_norm(x), layer.SelfAttention
        shape = (*x.shape[:2], -1, attn.key_value_proj_dim)
        q, k = (project(y).view(shape).transpose(1, 2) for project in (attn.q, attn.k))
        return q, k


def _read(
    decoder: Any,
    run: EncoderPass,
    *args: Any,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    **kw: Any,
) -> Any:
    if encoder_hidden_states is not None:
        encoder_attention_mask = run.readable(encoder_hidden_states, encoder_attention_mask)
    return original(decoder)(
        *args,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
        **kw,
    )


def _finite(x: Tensor) -> Tensor:
    """As T5 keeps float16 below infinity, between the parts of a block."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(x.dtype).max
    bound = torch.where(x.isinf().any(), largest - 1000, largest)
    return x.clamp(min=-bound, max=bound)


class AnswerTower(Tower):
    """The decoder of T5: it is there to be counted, and is never reduced."""

    name = "decoder"
    attn_parts, cross_parts, mlp_parts = ("layer.0",), ("layer.1",), ("layer.2",)
    fixed = "the decoder of answers is not reduced: it says one token after another"

    def __init__(self, part: Any) -> None:
        """Find the blocks."""
        self.part, self.blocks = part, part.block

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.part.config.d_model)

    def reads(self, args: Sequence[Any], kw: Mapping[str, Any]) -> int:
        """Tokens of the encoder: the third of a block's arguments after its tokens."""
        states = args[2] if len(args) > 2 else kw.get("encoder_hidden_states")
        return 0 if states is None else int(states.shape[1])

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Refuse."""
        raise Unsupported(self.fixed)

    def install(self, run: Run) -> contextlib.AbstractContextManager[None]:
        """Refuse."""
        raise Unsupported(self.fixed)
