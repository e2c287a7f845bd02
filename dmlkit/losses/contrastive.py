"""Contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006), doi:10.1109/CVPR.2006.100.

Once on distances, and once on cosines as in https://github.com/bnu-wangxun/Deep_Metric.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity, euclidean_distance
from dmlkit.miners import Pairs, pairs_or_all


class ContrastiveLoss(nn.Module):
    """Pull same-class pairs together and push other pairs apart, up to a margin.

    With d the Euclidean distance: mean [d_p - m_pos]_+ + mean [m_neg - d_n]_+, each mean over
    its own non-zero terms. The paper squares and halves both terms (its eq. 4, with m_pos = 0)
    and sums; this is the form of pytorch-metric-learning, in which later work is compared.

    Args:
        positive_margin: distance below which a positive pair costs nothing, in [0, 2].
        negative_margin: distance above which a negative pair costs nothing, m in the paper.
    """

    def __init__(self, *, positive_margin: float = 0.0, negative_margin: float = 1.0) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without a valid pair it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        distance = euclidean_distance(embeddings)  # (B, B)

        pull = F.relu(distance - self.positive_margin).masked_fill(~positives, 0)  # (B, B)
        push = F.relu(self.negative_margin - distance).masked_fill(~negatives, 0)  # (B, B)
        return self._mean_of_nonzero(pull) + self._mean_of_nonzero(push)

    @staticmethod
    def _mean_of_nonzero(terms: Tensor) -> Tensor:
        return terms.sum() / (terms > 0).sum().clamp(min=1)


class SimilarityContrastiveLoss(nn.Module):
    """Raise the cosine of same-class pairs and lower that of the other pairs above a margin.

    Mean over all B anchors of sum_p (1 - s_p) + sum over {s_n > m} of s_n, with s the cosine.
    Sums, not means, over an anchor's pairs: a larger batch weighs its negatives more. An empty
    sum is 0.

    The form of Deep_Metric, whose default is the one here. A negative costs s_n itself, not
    s_n - m as in the usual hinge: the gradient is the hinge's, but the value jumps by m where
    a pair crosses the margin.

    Args:
        margin: cosine below which a negative pair costs nothing, m above.
    """

    def __init__(self, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without a valid pair it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        similarity = cosine_similarity(embeddings)  # (B, B)
        # Asked this way round, NaN stays in, and the loss shows it.
        is_near = negatives & ~(similarity <= self.margin)  # (B, B)

        pull = (1 - similarity).masked_fill(~positives, 0).sum(dim=1)  # (B,)
        push = similarity.masked_fill(~is_near, 0).sum(dim=1)  # (B,)
        return (pull + push).mean()
