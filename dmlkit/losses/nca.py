"""Neighbourhood components analysis (Goldberger et al., NIPS 2004).

https://papers.nips.cc/paper/2566-neighbourhood-components-analysis
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.masked_sums import log_sum_exp
from dmlkit.miners import Pairs, pairs_or_all


class NCALoss(nn.Module):
    """Let every item pick a neighbour, near ones more likely, and want one of its own class.

    Mean over the anchors with a positive of -log(sum_p e^{-c d_p^2} / sum_{p and n} e^{-c d^2}),
    with d the Euclidean distance: the chance of picking a positive (eqs. 1 and 2). The paper
    maximises the sum of these chances and offers the sum of their logarithms, used here and in
    pytorch-metric-learning, as an alternative; its scale is in the learned map, so c = 1.

    With ``num_neighbours`` K, only the K items nearest to the anchor can be picked, ties with
    the last of them too; if none of them is a positive, the nearest positive joins them. This
    is the loss of https://github.com/bnu-wangxun/Deep_Metric as of 2018, with K = 32 and
    c = 16. Its code drops the ties instead; the present code there compares cosines with the
    signs of distances and uses undefined names, so it does not run.

    Args:
        softmax_scale: c above, not in the paper, alpha in Deep_Metric.
        num_neighbours: size of the neighbourhood, K; the whole batch if not given.

    Raises:
        ValueError: if ``softmax_scale`` is not above 0 or ``num_neighbours`` is below 1.
    """

    def __init__(self, *, softmax_scale: float = 1.0, num_neighbours: int | None = None) -> None:
        super().__init__()
        if not softmax_scale > 0:
            raise ValueError(f"{softmax_scale=} must be above 0")
        if num_neighbours is not None and num_neighbours < 1:
            raise ValueError(f"{num_neighbours=} must be at least 1, or None for the whole batch")
        self.softmax_scale = softmax_scale
        self.num_neighbours = num_neighbours

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        ``pairs`` says which items an anchor can pick. Without a valid pair the loss is a zero
        that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        # -c d^2 = 2 c s - 2 c, of which the constant cancels in the fraction.
        logits = 2 * self.softmax_scale * cosine_similarity(embeddings)  # (B, B)
        if self.num_neighbours is not None:
            positives, negatives = self._keep_near(logits.detach(), positives, negatives)

        # -log(p / (p + n)) = log(1 + n / p), which does not underflow.
        odds = log_sum_exp(logits, negatives) - log_sum_exp(logits, positives)  # (B,)
        has_positive = positives.any(dim=1)  # (B,)
        loss = torch.where(has_positive, F.softplus(odds), 0.0)
        return loss.sum() / has_positive.sum().clamp(min=1)

    def _keep_near(self, logits: Tensor, positives: Tensor, negatives: Tensor) -> Pairs:
        """Return the masks of the K nearest and, if no positive is one, the nearest positive."""
        others = logits.masked_fill(~(positives | negatives), -torch.inf)  # (B, B)
        count = min(self.num_neighbours, len(logits))
        kth_nearest = others.topk(count, dim=1).values[:, -1:]  # (B, 1)
        nearest_positive = logits.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
        # Asked this way round, NaN stays in, and the loss shows it.
        return (
            positives & ~(logits < torch.minimum(kth_nearest, nearest_positive)),
            negatives & ~(logits < kth_nearest),
        )
