"""Which pairs of a batch a loss looks at.

A miner returns ``pairs = (positives, negatives)``: two (B, B) boolean masks whose row is the
anchor. Every pair loss takes them as ``loss(embeddings, labels, pairs=pairs)``.
"""

import torch
from torch import Tensor

from dmlkit.distances import cosine_similarity

Pairs = tuple[Tensor, Tensor]


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
