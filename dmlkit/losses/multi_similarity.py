"""Multi-Similarity loss (Wang et al., CVPR 2019), https://arxiv.org/abs/1904.06627."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs, pairs_or_all


class MultiSimilarityLoss(nn.Module):
    """Weigh each pair by its own similarity and by those of the anchor's other pairs.

    Mean over all B anchors of (1/a) log(1 + sum_p e^{-a (s_p - l)})
    + (1/b) log(1 + sum_n e^{b (s_n - l)}), with s the cosine. An anchor without pairs counts
    as 0 in the mean, as in the released code. The paper's pair mining is
    :func:`dmlkit.miners.multi_similarity_miner`, given as ``pairs``.

    The paper's text has b = 50 and l = 1; the released code b = 40 and l = 0.5;
    pytorch-metric-learning 50 and 0.5, which are the defaults here.

    Args:
        positive_scale: sharpness of the positive part, a above and alpha in the paper.
        negative_scale: sharpness of the negative part, b above and beta in the paper.
        base: cosine at which a lone pair has half its full weight, l above, lambda in the paper.
    """

    def __init__(
        self, *, positive_scale: float = 2.0, negative_scale: float = 50.0, base: float = 0.5
    ) -> None:
        super().__init__()
        self.positive_scale = positive_scale
        self.negative_scale = negative_scale
        self.base = base

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without a valid pair it is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        similarity = cosine_similarity(embeddings) - self.base  # (B, B)

        pull = self._log_one_plus_sum_exp(-self.positive_scale * similarity, positives)  # (B,)
        push = self._log_one_plus_sum_exp(self.negative_scale * similarity, negatives)  # (B,)
        return (pull / self.positive_scale + push / self.negative_scale).mean()

    @staticmethod
    def _log_one_plus_sum_exp(logits: Tensor, keep: Tensor) -> Tensor:
        """Return log(1 + sum of exp over the kept entries): (B, B) -> (B,)."""
        # The 1 enters as a column e^0, so no row is empty and no gradient is -inf - -inf.
        return F.pad(logits.masked_fill(~keep, -torch.inf), (0, 1)).logsumexp(dim=1)
