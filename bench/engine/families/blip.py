"""Adapters for BLIP: image-text matching, visual question answering, captioning.

The image encoder is reduced as CLIP's. The text encoder (matching, questions) is reduced after its
self-attention, so that its cross-attention has fewer queries, and reads the image tokens that are
left; its class token stays. The decoders of answers and captions are not reduced, but read what is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.attention import fused_projection, own_projections
from bench.engine.families import Adapter
from bench.engine.families.hf import FAMILIES, VisionTower
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower, original, override

_VISION = replace(FAMILIES["CLIPVisionModel"], masked=False)
_FIXED = "the text decoder is not reduced: it says one token after another, and reads all of them"


class BlipAdapter(Adapter):
    """BLIP of transformers."""

    supports = (
        "transformers BLIP for retrieval and for questions (vision, text)",
        "transformers BLIP for captions (vision)",
    )

    classes = (
        "BlipForImageTextRetrieval",
        "BlipForQuestionAnswering",
        "BlipForConditionalGeneration",
    )

    def towers(self, model: Any) -> dict[str, Tower]:
        """The image encoder, the text encoder and the decoder, whichever the model has."""
        encoder = getattr(model, "text_encoder", None)
        decoder = getattr(model, "text_decoder", None)
        decoders = [] if decoder is None else [decoder.bert]
        # the text encoder reads the image's tokens, or without one the decoder
        readers = decoders if encoder is None else [encoder]
        towers: dict[str, Tower] = {"vision": BlipVisionTower(model.vision_model, readers)}
        if encoder is not None:
            towers["text"] = BlipTextTower(encoder, decoders)
        if decoder is not None:
            towers["decoder"] = BlipDecoder(decoder.bert)
        return towers


class BlipVisionTower(VisionTower):
    """The image encoder, with a class token in front."""

    def __init__(self, part: Any, readers: Sequence[Any]) -> None:
        """Note whose cross-attention reads its tokens."""
        super().__init__(part, _VISION)
        self.readers = readers

    @contextlib.contextmanager
    def _tap(self, run: Run) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self.blocks:
                attn: Any = block.self_attn
                tapped = partial(_image_attention, attn, run)
                stack.enter_context(override(attn, "forward", tapped))
            yield

    def install_more(self, run: Run, stack: contextlib.ExitStack) -> None:
        """Whoever reads its tokens sees a merged one as often as the method's own attention."""
        for reader in self.readers:
            stack.enter_context(reading(reader, run.size_bias))
        # for those who keep the tokens for later: a match that is scored long after
        stack.enter_context(override(self.part, "_size_bias", run.size_bias))


def _image_attention(attn: Any, run: Run, hidden_states: Tensor, **kw: Any) -> tuple[Tensor, None]:
    return fused_projection(attn, hidden_states, run), None


def heed_padding(reader: Any) -> None:
    """Let the cross-attention of a text model see the mask of what is read.

    transformers 5.23 takes that mask and leaves it out on the way, so that an answer depends on how
    far its question was padded.
    """
    for block in reader.encoder.layer:
        cross = block.crossattention
        if "encoder_attention_mask" not in inspect.signature(type(cross).forward).parameters:
            cross.self.register_forward_pre_hook(_hand_on, with_kwargs=True)


def _hand_on(attn: Any, args: Any, kw: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kw, "encoder_attention_mask": kw.get("attention_mask")}


@contextlib.contextmanager
def reading(reader: Any, bias: Callable[[torch.dtype], Tensor | None]) -> Iterator[None]:
    """Let the cross-attention of a text model add `bias` (B,1,1,N) to its logits, where not None.

    It stands in for a mask, which knows nothing of tokens that were taken out.
    """
    with contextlib.ExitStack() as stack:
        for block in reader.encoder.layer:
            attn = block.crossattention.self
            stack.enter_context(override(attn, "forward", partial(_read, attn, bias)))
        yield


def _read(
    attn: Any,
    bias: Callable[[torch.dtype], Tensor | None],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    **kw: Any,
) -> Any:
    extra = None if encoder_hidden_states is None else bias(hidden_states.dtype)
    if extra is not None and len(extra) not in (1, len(hidden_states)):  # beams side by side
        extra = extra.repeat_interleave(len(hidden_states) // len(extra), 0)
    if extra is None and encoder_hidden_states is not None and encoder_attention_mask is not None:
        as_long = encoder_attention_mask.shape[-1] == encoder_hidden_states.shape[1]
        extra = encoder_attention_mask if as_long else None
    return original(attn)(
        hidden_states,
        attention_mask=attention_mask,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=extra,
        **kw,
    )


class _BertTower(Tower):
    """Blocks with the norm after each branch and cross-attention in between."""

    attn_parts = ("attention",)
    cross_parts = ("crossattention",)
    mlp_parts = ("intermediate", "output")

    def __init__(self, part: Any) -> None:
        """Find the blocks."""
        self.part = part
        self.blocks = part.encoder.layer

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.part.config.hidden_size)

    def reads(self, args: Sequence[Any], kw: Mapping[str, Any]) -> int:
        """Tokens of the encoder that the cross-attention of a block reads."""
        states = args[0] if args else kw.get("encoder_hidden_states")
        return 0 if states is None else int(states.shape[1])

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Self-attention, residual add, norm."""
        y = own_projections(block.attention.self, x, run, mask)
        return block.attention.output(y, x)  # type: ignore[no-any-return]


class ReadingPass(Pass):
    """The pass of a text encoder whose blocks read an image between attention and MLP.

    Attributes:
        states: (B,M,C') tokens of the image encoder, while a block runs.
    """

    states: Tensor | None = None

    def block(
        self,
        layer: int,
        block: nn.Module,
        x: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kw: Any,
    ) -> Tensor:
        """One block: attend, reduce, read, feed. (B,N,C) -> (B,M,C)."""
        self.states = encoder_hidden_states
        try:
            return super().block(layer, block, x, **kw)
        finally:
            self.states = None  # an image's tokens are not held beyond the block

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Cross-attention where there is something to read, then the MLP. (B,M,C) -> (B,M,C)."""
        if self.states is not None:
            x = block.crossattention(x, encoder_hidden_states=self.states)[0]
        return block.feed_forward_chunk(x)  # type: ignore[no-any-return]


class BlipTextTower(_BertTower):
    """The text encoder; its first token, which is read out, stays."""

    name = "text"
    pass_class = ReadingPass
    masked = True
    ordered = True

    def __init__(self, part: Any, readers: Sequence[Any]) -> None:
        """Note whose cross-attention reads its tokens."""
        super().__init__(part)
        self.readers = readers

    @property
    def has_anchor(self) -> bool:
        """The first token, [CLS] or [ENC]."""
        return True

    def anchor(self, run: Run, x: Tensor) -> Tensor:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long)

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Let the decoder of answers see no padding, and merged words as the method does."""
        with contextlib.ExitStack() as stack:
            for reader in self.readers:
                stack.enter_context(reading(reader, run.size_bias))
            yield


class BlipDecoder(_BertTower):
    """The decoder of answers or captions: it is there to be counted, and is never reduced."""

    name = "decoder"
    fixed = _FIXED

    def install(self, run: Run) -> contextlib.AbstractContextManager[None]:
        """Refuse."""
        raise Unsupported(self.fixed)
