"""Lifted structure loss (Song et al., CVPR 2016), https://arxiv.org/abs/1511.06452.

With two later forms: the generalised one of Hermans, Beyer and Leibe (2017),
https://arxiv.org/abs/1703.07737, and that of https://github.com/bnu-wangxun/Deep_Metric.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity, euclidean_distance
from dmlkit.losses.masked_sums import log_sum_exp
from dmlkit.miners import Pairs, pairs_or_all


class LiftedStructureLoss(nn.Module):
    """Compare each positive pair with all negatives of both of its ends (eq. 4).

    For a positive pair (i, j), with d the Euclidean distance,
    J_ij = log(sum_k e^{m - d_ik} + sum_l e^{m - d_jl}) + d_ij - m_pos,
    k over the negatives of i and l over those of j; the loss is the sum of [J_ij]_+^2 over all
    positive pairs, divided by twice their number. A pair whose ends have no negatives has
    J = -inf and costs 0.

    The paper has no m_pos, and its embeddings are not normalised; m_pos and the defaults are
    those of pytorch-metric-learning, m = 1 also the default of the authors' code.

    Args:
        positive_margin: subtracted from the distance of a positive pair, m_pos above.
        negative_margin: added to minus the distance of a negative pair, m above, alpha in the
            paper.
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
        # The sum over the negatives of an item is the same in each of its pairs.
        push = log_sum_exp(self.negative_margin - distance, negatives)  # (B,)

        # Listing the positive pairs makes a GPU wait once per step, but spares B^2 log-sums.
        i, j = positives.nonzero(as_tuple=True)  # (P,), (P,)
        pull = distance[i, j] - self.positive_margin  # (P,)
        hinge = F.relu(torch.logaddexp(push[i], push[j]) + pull)
        return hinge.square().sum() / (2 * max(len(hinge), 1))


class GeneralizedLiftedStructureLoss(nn.Module):
    """Compare all positives of each anchor with all of its negatives (Hermans et al., section 2).

    Mean over all B anchors of [log sum_p e^{d_p - m_pos} + log sum_n e^{m - d_n}]_+, with d the
    Euclidean distance. An anchor without positives or without negatives has the logarithm of an
    empty sum, -inf, and counts as 0 in the mean; pytorch-metric-learning takes that logarithm
    as 0 and adds the other part alone.

    The paper sums over the anchors and has no m_pos; the mean, m_pos and the defaults are those
    of pytorch-metric-learning.

    Args:
        positive_margin: subtracted from the distance of a positive pair, m_pos above.
        negative_margin: added to minus the distance of a negative pair, m above and in the paper.
    """

    def __init__(self, *, positive_margin: float = 0.0, negative_margin: float = 1.0) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without an anchor that has both kinds of pairs it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        distance = euclidean_distance(embeddings)  # (B, B)

        pull = log_sum_exp(distance - self.positive_margin, positives)  # (B,)
        push = log_sum_exp(self.negative_margin - distance, negatives)  # (B,)
        return F.relu(pull + push).mean()


class ModifiedLiftedStructureLoss(nn.Module):
    """Weigh an anchor's pairs by a soft-max of their cosines, with no hinge and no margin.

    Mean over all B anchors of (2/b) log sum_p e^{-b s_p} + (2/a) log sum_n e^{a s_n}, with s
    the cosine; it may be below zero. An anchor without positives or without negatives counts
    as 0 in the mean.

    The form of Deep_Metric, whose defaults are the ones here. Its code takes a margin that it
    never uses. Its hard mining is :func:`dmlkit.miners.multi_similarity_miner` with epsilon
    0.1, given as ``pairs``.

    Args:
        positive_scale: sharpness of the positive part, b above, beta in the code.
        negative_scale: sharpness of the negative part, a above, alpha in the code.

    Raises:
        ValueError: if a scale is not above 0.
    """

    def __init__(self, *, positive_scale: float = 2.0, negative_scale: float = 40.0) -> None:
        super().__init__()
        if not (positive_scale > 0 and negative_scale > 0):
            raise ValueError(f"{positive_scale=} and {negative_scale=} must both be above 0")
        self.positive_scale = positive_scale
        self.negative_scale = negative_scale

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without an anchor that has both kinds of pairs it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        similarity = cosine_similarity(embeddings)  # (B, B)

        pull = log_sum_exp(-self.positive_scale * similarity, positives)  # (B,)
        push = log_sum_exp(self.negative_scale * similarity, negatives)  # (B,)
        loss = 2 / self.positive_scale * pull + 2 / self.negative_scale * push  # (B,)
        has_both = positives.any(dim=1) & negatives.any(dim=1)  # (B,)
        return torch.where(has_both, loss, 0.0).mean()
