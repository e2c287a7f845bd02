"""Weight loss of https://github.com/bnu-wangxun/Deep_Metric (2018), before Multi-Similarity."""

from torch import Tensor

from dmlkit.losses.multi_similarity import MultiSimilarityLoss
from dmlkit.miners import Pairs


class WeightLoss(MultiSimilarityLoss):
    """Twice the Multi-Similarity loss, of which it is the first version by the same author.

    Mean over all B anchors of (2/b) log(1 + sum_p e^{-b (s_p - m)})
    + (2/a) log(1 + sum_n e^{a (s_n - m)}), with s the cosine. There is no paper; the code
    assumes classes of one size, and here an empty sum is 0. Its hard mining is
    :func:`dmlkit.miners.multi_similarity_miner` with epsilon 0.1, given as ``pairs``; an
    anchor without pairs counts as 0 in the mean.

    The code takes a margin and ignores it: m is fixed at 0.5. The defaults are those of the
    code; its training script sets a = 40.

    Args:
        positive_scale: sharpness of the positive part, b above, beta in the code.
        negative_scale: sharpness of the negative part, a above, alpha in the code.
        base: cosine at which a lone pair has half its full weight, m above.

    Raises:
        ValueError: if a scale is not above 0.
    """

    def __init__(
        self, *, positive_scale: float = 2.0, negative_scale: float = 10.0, base: float = 0.5
    ) -> None:
        if not (positive_scale > 0 and negative_scale > 0):
            raise ValueError(f"{positive_scale=} and {negative_scale=} must both be above 0")
        super().__init__(positive_scale=positive_scale, negative_scale=negative_scale, base=base)

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        Without a valid pair it is a zero that still has a graph.
        """
        return 2 * super().forward(embeddings, labels, pairs=pairs)
