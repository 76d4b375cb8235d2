"""Clusters of tokens: density peaks (DPC-KNN, bounded), weighted means, k-medoids.

The methods `dpc-knn`, `kmedoids` and `pact` name the sources and the departures from them. Shapes:
B batch, N tokens without the protected ones, K clusters, C channels, P protected tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.core import Plan, take

ROUNDS = 32  # 1,600 random or smoothly changing vectors needed at most 31, and 316 needed 13


@torch.no_grad()
def density_peaks(
    x_BNC: Tensor, clusters: int, k: int = 5, empty_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centres (B,K) by descending peak score, and the cluster number (B,N) of every token.

    Args:
        x_BNC: tokens without the protected ones.
        clusters: how many centres.
        k: a token's density is taken over its k nearest, itself among them.
        empty_BN: slots without a token, which are nobody's neighbours.
    """
    N, C = x_BNC.shape[1:]
    dist_BNN = torch.cdist(x_BNC.float(), x_BNC.float()) / C**0.5
    largest_B11 = dist_BNN.amax((1, 2), keepdim=True)
    if empty_BN is not None:
        dist_BNN = dist_BNN.masked_fill(empty_BN[:, None], torch.inf)
    near = dist_BNN.topk(min(k, N), dim=-1, largest=False).values
    density_BN = -near.square().mean(-1)  # its logarithm
    if empty_BN is not None:
        density_BN = density_BN.masked_fill(empty_BN, -torch.inf)
    here, there = density_BN[:, :, None], density_BN[:, None]
    denser = (there > here) | ((there == here) & torch.ones_like(dist_BNN[0]).tril(-1).bool())
    delta_BN = torch.where(denser, dist_BNN, largest_B11).amin(-1)
    peak_BN = delta_BN.log() + density_BN
    centre = peak_BN.argsort(dim=1, descending=True, stable=True)[:, :clusters]
    cluster = take(dist_BNN, centre).argmin(1)
    number = torch.arange(clusters, device=centre.device).expand_as(centre)
    return centre, cluster.scatter(1, centre, number)


def cluster_means(
    centre_BK: Tensor, cluster_BN: Tensor, weight_BN: Tensor, fixed: Tensor, patches: Tensor
) -> Plan:
    """The plan that puts each cluster's weighted mean at its centre's slot, after the fixed ones.

    Args:
        centre_BK: centres, as numbers of patches.
        cluster_BN: each patch's cluster.
        weight_BN: each patch's weight.
        fixed: (B,P) positions of the protected tokens.
        patches: (B,N) positions of the patches.
    """
    total_BK = torch.zeros_like(centre_BK, dtype=weight_BN.dtype)
    total_BK = total_BK.scatter_add(1, cluster_BN, weight_BN) + 1e-6
    share_BN = weight_BN / total_BK.gather(1, cluster_BN)
    is_centre = torch.zeros_like(cluster_BN).scatter(1, centre_BK, 1)
    gone = is_centre.argsort(dim=1, stable=True)[:, : patches.shape[1] - centre_BK.shape[1]]
    stays = torch.ones_like(fixed, dtype=share_BN.dtype)
    return Plan(
        keep=torch.cat([fixed, patches.gather(1, centre_BK)], 1),
        src=patches.gather(1, gone),
        dst=cluster_BN.gather(1, gone) + fixed.shape[1],
        mix=(torch.cat([stays, share_BN.gather(1, centre_BK)], 1), share_BN.gather(1, gone)),
    )


@torch.no_grad()
def k_medoids(
    x_BNC: Tensor,
    clusters: int,
    iterations: int = 3,
    weight_BN: Tensor | None = None,
    first: int = 0,
    empty_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Medoids (B,K) in the order of their first choice, and the cluster number (B,N) of each token.

    Args:
        x_BNC: tokens without the protected ones.
        clusters: how many medoids.
        iterations: rounds of assignment and new choice.
        weight_BN: the heaviest are chosen first; None for equal weights.
        first: with equal weights, the token chosen first.
        empty_BN: slots without a token: chosen last, and no part of any cost.
    """
    x = x_BNC.float()
    dist_BNN = torch.cdist(x, x)
    empty = torch.zeros_like(x[..., 0], dtype=torch.bool) if empty_BN is None else empty_BN
    if weight_BN is None:
        weight_BN = torch.ones_like(x[..., 0])
        medoid = farthest(dist_BNN.masked_fill(empty[..., None], -1.0), clusters, first)
    else:
        rank = weight_BN.masked_fill(empty, -1.0)
        medoid = rank.argsort(dim=1, descending=True, stable=True)[:, :clusters]
    cost_BN = weight_BN * dist_BNN.masked_fill(empty[:, None], 0.0).sum(-1)
    cost_BN = cost_BN.masked_fill(empty, torch.finfo(cost_BN.dtype).max)
    number = torch.arange(clusters, device=x.device)
    for _ in range(iterations):
        member_BKN = assign(dist_BNN, medoid)[:, None] == number[:, None]
        medoid = torch.where(member_BKN, cost_BN[:, None], torch.inf).argmin(-1)
    return medoid, assign(dist_BNN, medoid)


def assign(dist_BNN: Tensor, medoid_BK: Tensor) -> Tensor:
    """(B,N) number of the nearest medoid, the lower one on ties; medoids go to themselves."""
    number = torch.arange(medoid_BK.shape[1], device=medoid_BK.device).expand_as(medoid_BK)
    return take(dist_BNN, medoid_BK).argmin(1).scatter(1, medoid_BK, number)


def farthest(dist_BNN: Tensor, count: int, first: int) -> Tensor:
    """(B,K) tokens, each the one that lies farthest from any (not from all) of those before it."""
    chosen = torch.full_like(dist_BNN[:, :1, 0], first, dtype=torch.long)
    done = torch.zeros_like(dist_BNN[..., 0], dtype=torch.bool)
    reach = torch.full_like(dist_BNN[..., 0], -1.0)
    for _ in range(1, count):
        newest = chosen[:, -1:]
        done = done.scatter(1, newest, True)
        column = dist_BNN.gather(2, newest[:, None].expand(-1, dist_BNN.shape[1], -1))[..., 0]
        reach = torch.maximum(reach, column)
        chosen = torch.cat([chosen, reach.masked_fill(done, -2.0).argmax(1, keepdim=True)], 1)
    return chosen


def bounded_peaks(dist_BNN: Tensor, cutoff: float, most: int, rounds: int) -> tuple[Tensor, Tensor]:
    """(B,N) bool, centres that lie more than `cutoff` apart, with all others within it of one.

    A token becomes a centre if no denser one within `cutoff` of it has become one; of these the
    `most` densest are taken. A token's density is the sum of `exp(-(d/2)^2)` over all tokens,
    itself among them; of equally dense ones the lower position counts as the denser. Distances
    below 0 count as 0, and so does a token's to itself.

    Args:
        dist_BNN: distances.
        cutoff: how near a token may be to a centre.
        most: how many centres at most.
        rounds: a token is surely decided after as many as there are tokens in a chain that leads
            to it, each denser than the next and within `cutoff` of it.

    Returns:
        The centres, and whether all tokens are decided, as a tensor that nobody has asked yet.
    """
    dist_BNN = dist_BNN.clamp_min(0)
    dist_BNN.diagonal(dim1=1, dim2=2).zero_()
    density_BN = (-(dist_BNN / 2).square()).exp().sum(-1)
    order_BN = density_BN.argsort(dim=1, descending=True, stable=True)
    rank_BN = order_BN.argsort(dim=1)
    blocks_BNN = (dist_BNN <= cutoff) & (rank_BN[:, None] < rank_BN[:, :, None])
    blocks_BNN = blocks_BNN.to(torch.uint8)  # of which a CPU takes the maximum faster than of bool
    before_BN = centre_BN = torch.ones_like(rank_BN, dtype=torch.uint8)
    for _ in range(rounds):
        before_BN, centre_BN = centre_BN, (blocks_BNN & centre_BN[:, None]).amax(-1) ^ 1
    sorted_BN = centre_BN.bool().gather(1, order_BN)
    sorted_BN = sorted_BN & (sorted_BN.cumsum(1) <= most)
    centres_BN = torch.zeros_like(sorted_BN).scatter(1, order_BN, sorted_BN)
    return centres_BN, (centre_BN == before_BN).all()


def settled(dist_1NN: Tensor, cutoff: float, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the `bounded_peaks` of one sample (N,), of more and more rounds."""
    rounds = ROUNDS
    while True:
        (centre_N,), decided = bounded_peaks(dist_1NN, cutoff, most, rounds)
        yield centre_N, decided
        rounds *= 4


def around_centres(
    protect_N: Tensor,
    patches_I: Tensor,
    passed_P: Tensor,
    dist_IP: Tensor,
    reach: float,
    mean: bool,
    centre_P: Tensor,
    decided: Tensor,
) -> Plan | None:
    """The plan of one sample in which patches join their nearest centre, or are dropped.

    This asks once how many tokens stay and join. Returns None where centres are not `decided`.

    Args:
        protect_N: bool, tokens that stay.
        patches_I: positions of the others.
        passed_P: the numbers of those patches that surely join.
        dist_IP: distances between all patches and these.
        reach: the other patches join a centre that is so near.
        mean: a centre becomes the mean of what joins it; else it stays as it is, and counts them.
        centre_P: bool, which of those that passed are centres; they stay at their places.
        decided: bool, a scalar: the centres are final.
    """
    nearest_I, number_I = dist_IP.masked_fill(~centre_P, torch.inf).min(-1)
    joins_I = (nearest_I <= reach).scatter(0, passed_P, ~centre_P)
    stays_N = protect_N.scatter(0, patches_I[passed_P], centre_P)
    slot_N = stays_N.cumsum(0) - 1
    asked = torch.stack([decided.long(), stays_N.sum(), joins_I.sum()])
    final, kept, joining = asked.tolist()  # waits for a GPU
    if not final:
        return None
    first_N, first_I = ((~b).to(torch.int8).argsort(stable=True) for b in (stays_N, joins_I))
    keep, join_R = first_N[None, :kept], first_I[:joining]
    src, dst = patches_I[join_R][None], slot_N[patches_I[passed_P[number_I[join_R]]]][None]
    mix = None if mean else (torch.ones_like(keep).float(), torch.zeros_like(src).float())
    return Plan(keep, src, dst, mix=mix)
