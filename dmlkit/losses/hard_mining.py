"""Hard-mining loss of https://github.com/bnu-wangxun/Deep_Metric (2018)."""

import torch
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs, multi_similarity_miner, pairs_or_all


class HardMiningLoss(nn.Module):
    """Raise the mean cosine of the hard positives and lower that of the hard negatives.

    Mean over all B anchors of mean_p (1 - s_p) + mean_n s_n, with s the cosine, p over the
    positives with s_p < max_n s_n + m and n over the negatives with s_n > min_p s_p - m: the
    rule of :func:`dmlkit.miners.multi_similarity_miner`, with epsilon m. An anchor that keeps
    no pair counts as 0 in the mean. All the choice is in the mining: every kept pair of an
    anchor has the same weight.

    There is no paper. The code takes a margin and ignores it: m is fixed at 0.1, the default
    here.

    Args:
        margin: cosine margin of the mining, m above; of no effect on ``pairs`` that are given.
    """

    def __init__(self, *, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        ``pairs``, if given, take the place of the mining. Without an anchor that has both kinds
        of pairs the loss is a zero that still has a graph.
        """
        if pairs is None:
            pairs = multi_similarity_miner(embeddings, labels, epsilon=self.margin)
        positives, negatives = pairs_or_all(labels, pairs)
        similarity = cosine_similarity(embeddings)  # (B, B)

        pull = self._mean_of_kept(1 - similarity, positives)  # (B,)
        push = self._mean_of_kept(similarity, negatives)  # (B,)
        has_both = positives.any(dim=1) & negatives.any(dim=1)  # (B,)
        return torch.where(has_both, pull + push, 0.0).mean()

    @staticmethod
    def _mean_of_kept(terms: Tensor, keep: Tensor) -> Tensor:
        """Return the mean over the kept entries: (B, B) -> (B,), 0 where there are none."""
        return terms.masked_fill(~keep, 0).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
