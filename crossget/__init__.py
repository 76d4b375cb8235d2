"""CrossGET (Shi et al., ICML 2024, arXiv:2305.17455): the algorithm, step by step.

`matching` is complete-graph soft matching, `importance` how much a token matters to the cross
token, `ensemble` the weights of a merged pair, `cross_tokens` the learned vectors, `loss` what
aligns them. `methods/crossget.py` puts them in a `Plan`.
"""

from crossget.cross_tokens import CrossTokens
from crossget.ensemble import pair_weights
from crossget.importance import importance_from_attention, similarity_and_importance
from crossget.loss import (
    alignment_loss,
    blip_alignment_loss,
    clip_alignment_loss,
    llava_alignment_loss,
)
from crossget.matching import Matching, complete_graph_soft_matching

__all__ = [
    "CrossTokens",
    "Matching",
    "alignment_loss",
    "blip_alignment_loss",
    "clip_alignment_loss",
    "complete_graph_soft_matching",
    "importance_from_attention",
    "llava_alignment_loss",
    "pair_weights",
    "similarity_and_importance",
]
