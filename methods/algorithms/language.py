"""Inside a language model: the block before, words behind the image, raters and pivots.

The methods `dart`, `sparsevlm` and `pact` name the sources and the departures from them. Shapes: B
batch, N tokens, P words or pivots, H heads, C and D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.core import Site, Unsupported, take
from bench.core.site import LanguageSite
from methods.algorithms.ranking import precise


def block_before(site: Site, name: str) -> LanguageSite:
    """The site for method `name`, with queries and keys of the block before in float32.

    Raises:
        Unsupported: it is in no language model, no block ran before, or it saw other tokens.
    """
    if not isinstance(site, LanguageSite):
        raise Unsupported(f"method '{name}' looks into a language model, and this site is of none")
    if not site.q.shape[-1] or site.q.shape[2] != site.x.shape[1]:
        raise Unsupported(
            f"method '{name}' reads the block before, and ahead of block {site.layer} none has run "
            "on these tokens: give other layers="
        )
    return precise(site)


def words_after(protect_BN: Tensor, size_BN1: Tensor) -> Tensor:
    """(B,N) which of the protected tokens are words behind the last one of the image."""
    position = torch.arange(protect_BN.shape[1], device=protect_BN.device)
    last_B1 = torch.where(protect_BN, -1, position).amax(1, keepdim=True)
    return protect_BN & (size_BN1[..., 0] > 0) & (position > last_B1)


def raters(
    x_BNC: Tensor, protect_BN: Tensor, size_BN1: Tensor, words: int
) -> tuple[Tensor, Tensor]:
    """Scores (B,P) of the last `words` protected tokens, and (B,P) bool, who is above the mean.

    A score is the mean over the image's tokens of a softmax over the words behind the image; it is
    0 for those ahead of it, and NaN where there are none behind it.
    """
    at_BP = protect_BN.to(torch.int8).argsort(dim=1, stable=True)[:, -words:]
    after_BP = words_after(protect_BN, size_BN1).gather(1, at_BP)
    x_BNC = x_BNC.float()
    logits_BNP = x_BNC @ take(x_BNC, at_BP).transpose(1, 2)
    share_BNP = logits_BNP.masked_fill(~after_BP[:, None], -torch.inf).softmax(-1)
    image_BN1 = ~protect_BN[..., None]
    score_BP = share_BNP.masked_fill(~image_BN1, 0).sum(1) / image_BN1.sum(1)
    mean_B1 = score_BP.sum(1, keepdim=True) / after_BP.sum(1, keepdim=True)
    return score_BP, after_BP & (score_BP > mean_B1)


def paid_by_raters(site: LanguageSite, name: str, divisor_BHNN: Tensor | None = None) -> Tensor:
    """(B,H,N) attention that the raters pay, divided first if asked, mean over the raters.

    Raises:
        Unsupported: the site does not say what method `name` saw at the first block.
    """
    words = slice(site.x.shape[1] - max(site.n_protected, 1), None)
    attention_BHPN = site.attention(words)
    if divisor_BHNN is not None:
        attention_BHPN = attention_BHPN / divisor_BHNN[:, :, words]
    rates_B1P1 = rating(site, name)[:, None, words, None]
    return attention_BHPN.masked_fill(~rates_B1P1, 0).sum(2) / rates_B1P1.sum(2)


def rating(site: LanguageSite, name: str) -> Tensor:
    """(B,N) the words behind the image that fit it above the mean; the last token if none does.

    Raises:
        Unsupported: the site does not say what method `name` saw at the first block.
    """
    start, rates_BN = site.start, torch.zeros_like(site.protect)
    if start is None or site.anchor is None:
        raise Unsupported(f"method '{name}' compares words and image at the first block")
    if words := min(site.n_protected, start.x.shape[1]):
        _, rates_BP = raters(start.x, start.protect, start.size, words)
        rates_BN = rates_BN.scatter(1, site.split()[0][:, -words:], rates_BP)
    last_BN = torch.arange(site.x.shape[1], device=site.x.device) == site.anchor[:, None]
    return rates_BN | (last_BN & ~rates_BN.any(1, keepdim=True))


def highest(score_BN: Tensor, among_BN: Tensor, count: int) -> Tensor:
    """(B,count) positions of the highest scores among some tokens, the lower position first."""
    score_BN = score_BN.masked_fill(~among_BN, -torch.inf)
    return score_BN.argsort(dim=1, descending=True, stable=True)[:, :count]


def least_alike(alike_BPN: Tensor, count_BP: Tensor, taken_BN: Tensor) -> Tensor:
    """(B,N) what is taken when each pivot in turn takes the `count` tokens least like it."""
    for alike_BN, count_B in zip(alike_BPN.unbind(1), count_BP.unbind(1), strict=True):
        order_BN = alike_BN.masked_fill(taken_BN, torch.inf).argsort(dim=1, stable=True)
        taken_BN = taken_BN | (order_BN.argsort(dim=1) < count_B[:, None])
    return taken_BN


def mean_query_attention(q_BHND: Tensor, k_BHND: Tensor, site: Site) -> Tensor:
    """(B,N) what the mean query pays each token, mean over heads, in float32.

    Only what stands up to the image's last token asks and is paid: words behind it get 0.
    """
    span_BN = (site.size[..., 0] > 0) & ~words_after(site.protect, site.size)
    in_span = span_BN[:, None, :, None]
    mean_BH1D = (q_BHND.float() * in_span).sum(2, keepdim=True) / in_span.sum(2, keepdim=True)
    k_BHND = k_BHND.float().repeat_interleave(q_BHND.shape[1] // k_BHND.shape[1], 1)
    logits_BHN = (mean_BH1D @ k_BHND.transpose(2, 3))[:, :, 0] / math.sqrt(q_BHND.shape[3])
    return logits_BHN.masked_fill(~span_BN[:, None], -torch.inf).softmax(-1).mean(1)
