"""Binomial deviance loss (Yi, Lei and Li, 2014), https://arxiv.org/abs/1407.4979."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs, pairs_or_all


class BinomialDevianceLoss(nn.Module):
    """Judge each pair by a soft hinge on its cosine, whatever the other pairs are.

    Mean over all B anchors of mean_p log(1 + e^{-a (s_p - m)}) + w mean_n log(1 + e^{b (s_n - m)}),
    with s the cosine. An anchor without positives or without negatives counts as 0 in the mean.

    The forms in use, all with m = 0.5 and a = 2:

    - Yi et al.: w = 1 and b = 2 C, C the cost of a negative; later work takes C = 25. Their means
      run over all positive and all negative pairs of the batch, not per anchor; the two agree
      when all classes of a batch have the same size.
    - https://github.com/bnu-wangxun/Deep_Metric without mining: w = 1 and b = 40, the defaults
      here.
    - The same with hard mining: w = 2/b, with the pairs of
      :func:`dmlkit.miners.multi_similarity_miner` at epsilon 0.1. Its positive part is
      multiplied by 2/a too, and its default a is 0: it divides by zero unless a is given.
    - Its first version, 2018: w = 0.04 and b = 50, with all positives and the negatives above
      min_p s_p - 0.05.

    Args:
        positive_scale: slope of the positive part, a above, alpha in the paper; fixed at 2 in
            Deep_Metric without mining.
        negative_scale: slope of the negative part, b above, alpha in Deep_Metric.
        margin: cosine that separates the two kinds of pairs, m above, beta in the paper.
        negative_weight: weight of the negative part, w above.

    Raises:
        ValueError: if a scale is not above 0.
    """

    def __init__(
        self,
        *,
        positive_scale: float = 2.0,
        negative_scale: float = 40.0,
        margin: float = 0.5,
        negative_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not (positive_scale > 0 and negative_scale > 0):
            raise ValueError(f"{positive_scale=} and {negative_scale=} must both be above 0")
        self.positive_scale = positive_scale
        self.negative_scale = negative_scale
        self.margin = margin
        self.negative_weight = negative_weight

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without an anchor that has both kinds of pairs it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        similarity = cosine_similarity(embeddings) - self.margin  # (B, B)

        pull = self._mean_of_kept(F.softplus(-self.positive_scale * similarity), positives)  # (B,)
        push = self._mean_of_kept(F.softplus(self.negative_scale * similarity), negatives)  # (B,)
        has_both = positives.any(dim=1) & negatives.any(dim=1)  # (B,)
        return torch.where(has_both, pull + self.negative_weight * push, 0.0).mean()

    @staticmethod
    def _mean_of_kept(terms: Tensor, keep: Tensor) -> Tensor:
        """Return the mean over the kept entries: (B, B) -> (B,), 0 where there are none."""
        return terms.masked_fill(~keep, 0).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
