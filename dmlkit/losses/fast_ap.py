"""FastAP loss (Cakir et al., Deep Metric Learning to Rank, CVPR 2019), doi:10.1109/CVPR.2019.00196.

https://openaccess.thecvf.com/content_CVPR_2019/html/Cakir_Deep_Metric_Learning_to_Rank_CVPR_2019_paper.html
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs, pairs_or_all


class FastAPLoss(nn.Module):
    """Raise the average precision with which each anchor ranks the rest of the batch.

    Ranks have no gradient, so the squared distances d^2 = 2 - 2 s, in [0, 4], are counted in a
    histogram with centres at 0, 4 / L, ..., 4: each in the two bins beside it, 1 in all, and more
    in the nearer. Per anchor, with N+ positives,

        FastAP = (1 / N+) sum_j h+_j H+_j / H_j,

    with h+_j positives in bin j, and H+_j positives and H_j items of either kind up to and in
    bin j. The loss is the mean of 1 - FastAP over anchors that have a positive and a negative.

    The default number of bins is that of the authors' code and of pytorch-metric-learning. The
    published results also need batches of a few related classes, which is up to the sampler.

    Args:
        num_bins: number of bin widths that [0, 4] is divided into, L above and in the paper.

    Raises:
        ValueError: if ``num_bins`` is below 1.
    """

    def __init__(self, *, num_bins: int = 10) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"{num_bins=} must be at least 1")
        self.num_bins = num_bins

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        ``pairs`` says which items each anchor ranks. Without an anchor that has both kinds of
        pairs the loss is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        kind = 2 - 2 * positives.byte() - negatives.byte()  # (B, B): 0, 1, or 2 for neither
        positives_in, negatives_in, _ = self._histograms(embeddings, kind).unbind(dim=1)
        positives_to = positives_in.cumsum(dim=1)  # (B, L + 1), H+
        all_to = positives_to + negatives_in.cumsum(dim=1)  # (B, L + 1), H
        # Where H is 0, so is what it divides.
        terms = positives_in * positives_to / all_to.clamp(min=torch.finfo(all_to.dtype).tiny)
        precision = terms.sum(dim=1) / positives.sum(dim=1).clamp(min=1)  # (B,), FastAP
        has_both = positives.any(dim=1) & negatives.any(dim=1)  # (B,)
        return ((1 - precision) * has_both).sum() / has_both.sum().clamp(min=1)

    def _histograms(self, embeddings: Tensor, kind: Tensor) -> Tensor:
        """Return a histogram of d^2 per anchor and kind of pair, 0 to 2: (B, 3, L + 1)."""
        # In widths of a bin. Rounding would put coinciding or opposite rows outside of the bins.
        place = (1 - cosine_similarity(embeddings)) * (self.num_bins / 2)  # (B, B)
        place = place.clamp(0, self.num_bins)
        below = place.detach().long().clamp(0, self.num_bins - 1)  # (B, B); NaN lands there too
        share = place - below  # (B, B), counted in the bin above, and the rest in the one below

        # The three histograms side by side. The product alone would overflow a byte.
        column = torch.add(below, kind, alpha=self.num_bins)  # (B, B)
        empty = share.new_zeros(len(share), 3 * self.num_bins)
        items = empty.scatter_add(1, column, torch.ones_like(share)).unflatten(1, (3, -1))
        shares = empty.scatter_add(1, column, share).unflatten(1, (3, -1))  # (B, 3, L)
        return F.pad(items - shares, (0, 1)) + F.pad(shares, (1, 0))
