"""CrossGET (Shi et al., ICML 2024, arXiv:2305.17455): the algorithm, step by step.

`matching` is complete-graph soft matching, `importance` how much a token matters to the cross
token, `ensemble` the weights of a merged pair. `methods/crossget.py` puts them in a `Plan`.
"""

from crossget.ensemble import pair_weights
from crossget.importance import importance_from_attention, importance_from_query
from crossget.matching import Matching, complete_graph_soft_matching

__all__ = [
    "Matching",
    "complete_graph_soft_matching",
    "importance_from_attention",
    "importance_from_query",
    "pair_weights",
]
