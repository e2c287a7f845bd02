"""Which pairs of a batch a loss looks at.

A miner returns ``pairs = (positives, negatives)``: two (B, B) boolean masks whose row is the
anchor. Every pair loss takes them as ``loss(embeddings, labels, pairs=pairs)``. A sampler draws
index triplets out of such pairs; a loss that is defined by its sampling calls it itself.
"""

import torch
from torch import Tensor

from dmlkit.distances import cosine_similarity, euclidean_distance

Pairs = tuple[Tensor, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]


def all_pairs(labels: Tensor) -> Pairs:
    """Return every same-class and every other-class pair of the batch.

    Args:
        labels: (B,), integer class ids.

    Returns:
        The positive and the negative mask, each (B, B) bool. No item is its own positive:
        self is excluded by index, since equal images have similarity 1 too.

    Raises:
        ValueError: if ``labels`` is not one-dimensional.
    """
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; give one class id per row (B,)")
    same_class = labels[:, None] == labels[None, :]  # (B, B)
    is_self = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same_class & ~is_self, ~same_class


def pairs_or_all(labels: Tensor, pairs: Pairs | None) -> Pairs:
    """Return ``pairs``, or every pair of ``labels`` (B,) where none are given.

    Raises:
        ValueError: if a mask is not a boolean (B, B).
    """
    if pairs is None:
        return all_pairs(labels)
    for mask in pairs:
        # A mask of another shape would broadcast, and train on the wrong pairs in silence.
        if mask.dtype != torch.bool or mask.shape != (len(labels), len(labels)):
            raise ValueError(
                f"a pair mask is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"give bool of shape ({len(labels)}, {len(labels)})"
            )
    return pairs


@torch.no_grad()
def multi_similarity_miner(embeddings: Tensor, labels: Tensor, *, epsilon: float = 0.1) -> Pairs:
    """Keep the pairs that are hard beside the hardest pair of the other kind.

    Pair mining of Wang et al., CVPR 2019, https://arxiv.org/abs/1904.06627: a positive stays if
    it is less similar than the most similar negative plus epsilon, a negative if it is more
    similar than the least similar positive minus epsilon. An anchor without positives or
    without negatives keeps no pair.

    Args:
        embeddings: (B, D), L2-normalised.
        labels: (B,), integer class ids.
        epsilon: cosine margin, epsilon in the paper.

    Returns:
        The positive and the negative mask, each (B, B) bool.
    """
    similarity = cosine_similarity(embeddings)  # (B, B)
    positives, negatives = all_pairs(labels)
    # An empty set gives an infinity that no pair can pass.
    nearest_negative = similarity.masked_fill(~negatives, -torch.inf).amax(
        1, keepdim=True
    )  # (B, 1)
    farthest_positive = similarity.masked_fill(~positives, torch.inf).amin(
        1, keepdim=True
    )  # (B, 1)
    # Asked this way round, NaN keeps its pairs, and the loss shows it.
    return (
        positives & ~(similarity - epsilon >= nearest_negative),
        negatives & ~(similarity + epsilon <= farthest_positive),
    )


@torch.no_grad()
def distance_weighted_triplets(
    embeddings: Tensor,
    labels: Tensor,
    *,
    pairs: Pairs | None = None,
    nearest: float = 0.5,
    farthest: float = 1.4,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Draw a negative for each positive pair, at all distances about equally often.

    Sampling of Wu et al., ICCV 2017, https://arxiv.org/abs/1706.07567 (section 4). Two random
    points of the unit sphere in D dimensions are at distance d with a density q(d) proportional
    to d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2): nearly always close to sqrt(2). Hence each positive
    pair of an anchor draws one of its negatives with probability proportional to 1 / q(d),
    independently, so that several can draw the same.

    As in the authors' code, distances below ``nearest`` count as ``nearest``, and negatives at
    ``farthest`` or beyond have weight 0. An anchor whose negatives all have weight 0 draws from
    them uniformly (the authors' code then draws from the whole batch, positives too). An anchor
    without negatives has no triplet.

    Args:
        embeddings: (B, D), L2-normalised.
        labels: (B,), integer class ids.
        pairs: the pairs that may form triplets; every pair if not given.
        nearest: in (0, 2); it sets lambda in the paper, the most a negative can weigh.
        farthest: distance from which on a negative would cost nothing.
        generator: source of randomness, on the device of the embeddings; if not given, PyTorch's
            own, which ``torch.manual_seed`` seeds.

    Returns:
        Indices of anchors, positives and negatives, (T,) each, a triplet per positive pair.
    """
    positives, negatives = pairs_or_all(labels, pairs)
    positives = positives & negatives.any(dim=1, keepdim=True)
    distance = euclidean_distance(embeddings)  # (B, B)
    lowest, highest = torch.finfo(distance.dtype).min, torch.finfo(distance.dtype).max

    log_weight = -_log_density(distance.clamp(min=nearest), embeddings.shape[1])  # (B, B)
    # Asked this way round, NaN is in reach; it is drawn for certain, and the loss shows it.
    is_in_reach = negatives & ~(distance >= farthest)
    log_weight = log_weight.nan_to_num(nan=highest)
    # Out of reach the weight is e^0, which matters only in rows with nothing in reach.
    log_weight = log_weight.masked_fill(~is_in_reach, 0)
    may_be_drawn = torch.where(is_in_reach.any(dim=1, keepdim=True), is_in_reach, negatives)
    # Not -inf: a row without negatives must be drawable too, though nobody asks for its draws.
    weight = log_weight.masked_fill(~may_be_drawn, lowest).softmax(dim=1)

    anchor, positive = positives.nonzero(as_tuple=True)  # (T,), (T,)
    turn = positives.cumsum(dim=1)[anchor, positive] - 1  # (T,), which of its anchor's pairs it is
    most = max(1, int(positives.sum(dim=1).max()))
    drawn = torch.multinomial(weight, most, replacement=True, generator=generator)  # (B, most)
    return anchor, positive, drawn[anchor, turn]


def _log_density(distance: Tensor, dim: int) -> Tensor:
    """Return log q(d), up to a constant, of the distance between random points of a sphere."""
    cosine_part = (1 - distance**2 / 4).clamp(min=torch.finfo(distance.dtype).eps)  # 0 at d = 2
    return (dim - 2) * distance.log() + (dim - 3) / 2 * cosine_part.log()
