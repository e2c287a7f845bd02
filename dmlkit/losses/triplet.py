"""Triplet loss (Schroff et al., FaceNet, CVPR 2015), https://arxiv.org/abs/1503.03832."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import euclidean_distance
from dmlkit.miners import Pairs, pairs_or_all


class TripletLoss(nn.Module):
    """Want each anchor nearer to its positives than to its negatives by a margin.

    Mean of [d_ap - d_an + margin]_+ over its non-zero terms, d the Euclidean distance. FaceNet
    squares d and sums (section 3.1); plain distances follow Hermans et al. (2017) and
    pytorch-metric-learning.

    ``triplets`` says which triplets (anchor a, positive p, negative n) of the batch take part:
    ``all`` of them; ``semihard``, those with d_ap < d_an <= d_ap + margin (FaceNet, section
    3.2, all of them rather than one per pair); ``batch_hard``, for each anchor its farthest
    positive with its nearest negative (Hermans et al., https://arxiv.org/abs/1703.07737, who
    average over all anchors, zeros too).

    Memory is (number of positive pairs) x B; ``batch_hard`` needs only B x B.

    Args:
        margin: alpha in FaceNet, in units of distance, which is in [0, 2].
        triplets: ``all``, ``semihard`` or ``batch_hard``.

    Raises:
        ValueError: for any other ``triplets``.
    """

    def __init__(self, *, margin: float = 0.2, triplets: str = "semihard") -> None:
        super().__init__()
        if triplets not in ("all", "semihard", "batch_hard"):
            raise ValueError(f"triplets={triplets!r} is not one of all, semihard, batch_hard")
        self.margin = margin
        self.triplets = triplets

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        ``pairs`` says which (a, p) and which (a, n) may form triplets. Without a valid triplet
        the loss is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        distance = euclidean_distance(embeddings)  # (B, B)
        if self.triplets == "batch_hard":
            hinge = self._hinge_of_hardest(distance, positives, negatives)  # (B,)
        else:
            hinge = self._hinge_of_each(distance, positives, negatives)  # (P, B)
        return hinge.sum() / torch.count_nonzero(hinge).clamp(min=1)

    def _hinge_of_each(self, distance: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return [d_ap - d_an + m]_+ for each positive pair and item: (P, B), 0 where unwanted."""
        # Listing the positive pairs makes a GPU wait once per step, but spares B^3 memory.
        anchor, positive = positives.nonzero(as_tuple=True)  # (P,), (P,)
        gap = distance[anchor, positive][:, None] - distance[anchor]  # (P, B)
        wanted = negatives[anchor] & (gap > -self.margin)  # (P, B)
        if self.triplets == "semihard":
            wanted &= gap < 0
        return (gap + self.margin) * wanted  # a product, so that NaN stays and the loss shows it

    def _hinge_of_hardest(self, distance: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return [max_p d_ap - min_n d_an + m]_+ for each anchor: (B,), 0 where one is missing."""
        farthest_positive = distance.masked_fill(~positives, -torch.inf).amax(dim=1)  # (B,)
        nearest_negative = distance.masked_fill(~negatives, torch.inf).amin(dim=1)  # (B,)
        return F.relu(farthest_positive - nearest_negative + self.margin)
