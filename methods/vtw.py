"""VTW: all tokens of the image leave the language model at one block.

Source: Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for
Rapid Inference", AAAI 2025 (arXiv:2405.05803), §3; the rules of llava/model/language_model/VTW.py
(`k`, `pe_type`, `eta`), from a description of what that file does.
Departures: the image's tokens are found by what they are, in each sample by itself, of several
images too (the code knows the last image's length alone); padding may stand in front; the image's
tokens are withdrawn in front of a block of whichever number, also of a few that go one after the
other; the control that withdraws at random is left out; where no block's divergence is at or below
`eta` an error says so (the code fails).
Kept as in the code: the block that the budget names is the first without the image. Its examples
name 15 or 16 of 32 blocks, and 20 of 40: half of the depth is the default.
Shapes: B samples, N tokens, S samples of a calibration, L blocks, V words of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bench.core import BenchError, Plan, Site, register
from bench.core.kinds import LanguageReducer


@register("vtw", source="Lin et al., AAAI 2025", url="https://arxiv.org/abs/2405.05803")
@dataclass(frozen=True)
class VTW(LanguageReducer):
    """Takes all of the image's tokens out of the prompt, by default at half of the depth.

    Which block that is follows from `layers`; any share kept below 1 is none kept. The words keep
    their positions (`pe_type="keep"`), unless `keep_positions` is False.
    """

    keep_positions: bool = True

    least: ClassVar[int] = 0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.0, "layers": (16 / 32,)}

    def __post_init__(self) -> None:
        """Say whether positions are counted anew, which the harness asks."""
        object.__setattr__(self, "renumbers", not self.keep_positions)

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """All tokens or none."""
        return tokens if r > 0 else 0

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words, in their order."""
        return Plan(site.split()[0])


def divergences(full_SV: Tensor, withdrawn_SLV: Tensor) -> Tensor:
    """(L,) divergence KL(withdrawn || full) of the next word, in nats, the mean over samples.

    Args:
        full_SV: scores of the prompt's last token, nothing withdrawn.
        withdrawn_SLV: the same, with the image withdrawn at one block after the other.
    """
    log_full_SV = full_SV.float().log_softmax(-1)
    log_withdrawn_SLV = withdrawn_SLV.float().log_softmax(-1)
    gap_SLV = log_withdrawn_SLV - log_full_SV[:, None]
    return (log_withdrawn_SLV.exp() * gap_SLV).sum(-1).mean(0)


def withdrawal_block(
    full_SV: Tensor, withdrawn_SLV: Tensor, first: int = 5, eta: float = 0.003
) -> int:
    """The first block at which the image can leave and the answer stays, by a few samples' scores.

    Args:
        full_SV: scores of the prompt's last token, nothing withdrawn.
        withdrawn_SLV: the same, with the image withdrawn at block `first`, `first` + 1 and so on.
        first: the block that the first of them belongs to.
        eta: the largest divergence in nats; the authors take 0.003 for LLaVA-1.5-7B, 0.0005 for
            13B, and 0.0001 for LLaVA-1.6-7B.

    Raises:
        BenchError: the answer changes by more than that, wherever the image leaves.
    """
    gap_L = divergences(full_SV, withdrawn_SLV)
    good = (gap_L <= eta).nonzero()
    if not len(good):
        raise BenchError(
            f"vtw: no block's divergence is at or below eta={eta:g}; the smallest of blocks "
            f"{first} to {first + len(gap_L) - 1} is {float(gap_L.min()):.3g}"
        )
    return first + int(good[0])
