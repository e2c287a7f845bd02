"""NT-Xent loss (Chen et al., SimCLR, ICML 2020), https://arxiv.org/abs/2002.05709."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs, pairs_or_all


class NTXentLoss(nn.Module):
    """Pick each positive out of the anchor's negatives: cross-entropy over cosines.

    Mean over positive pairs (a, p) of -log( e^{s_ap / t} / (e^{s_ap / t} + sum_n e^{s_an / t}) ),
    s the cosine and n over the negatives of a (eq. 1). SimCLR has two views of each image and so
    one positive per anchor. With labels an anchor may have several; each then makes a term of its
    own, without the others in its denominator, as in pytorch-metric-learning.

    SimCLR tunes t to the data; 0.07 is the default of pytorch-metric-learning.

    Args:
        temperature: t above, tau in the paper, above 0.

    Raises:
        ValueError: if ``temperature`` is not above 0.
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{temperature=} must be above 0")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        A positive pair whose anchor has no negative counts as 0. Without a positive pair the loss
        is a zero that still has a graph.
        """
        positives, negatives = pairs_or_all(labels, pairs)
        logits = cosine_similarity(embeddings) / self.temperature  # (B, B)
        # The lowest finite number, not -inf, whose gradient is NaN in a row without negatives.
        of_negatives = logits.masked_fill(~negatives, torch.finfo(logits.dtype).min)  # (B, B)
        anchor, positive = positives.nonzero(as_tuple=True)  # (P,), (P,)
        against = of_negatives.logsumexp(dim=1)[anchor]  # (P,)
        # -log(e^x / (e^x + e^y)) = log(1 + e^(y - x)), which neither overflows nor cancels.
        terms = F.softplus(against - logits[anchor, positive])  # (P,)
        return terms.sum() / max(len(terms), 1)
