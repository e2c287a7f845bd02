"""Proxy-Anchor loss (Kim et al., CVPR 2020), https://arxiv.org/abs/2003.13911."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class ProxyAnchorLoss(nn.Module):
    """Pull the batch's images of a class to its proxy and push all others away, hard ones most.

    With s the cosine (eq. 4 of the paper):
    mean over the classes in the batch of log(1 + sum_{x of the class} e^{-a (s(x, p) - m)})
    + mean over all C classes of log(1 + sum_{x of other classes} e^{a (s(x, p) + m)}).

    Each class owns one learned proxy p, normalised in ``forward``. The proxies start normal with
    variance 2/C (Kaiming's rule, fan out), as in the authors' code, which has the same formula.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        margin: m above, delta in the paper.
        scale: sharpness, a above, alpha in the paper.

    Raises:
        ValueError: if ``scale`` is not above 0.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin: float = 0.1, scale: float = 32.0
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"{scale=} must be above 0")
        self.margin = margin
        self.scale = scale
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label on the CPU is outside [0, C).
        """
        check_proxy_inputs(self, embeddings, labels, pairs, num_classes=len(self.proxies))
        cosine = cosine_similarity(embeddings, F.normalize(self.proxies))  # (B, C)
        own = labels[:, None]  # (B, 1)

        # Only the P classes in the batch are pulled; listing them makes a GPU wait once per step.
        present = labels.unique()  # (P,)
        pull = -self.scale * (cosine.gather(1, own) - self.margin)  # (B, 1)
        pull = self._log_one_plus_sum_exp(pull.where(own == present, -torch.inf))  # (P,)

        push = self.scale * (cosine + self.margin)  # (B, C)
        push = self._log_one_plus_sum_exp(push.scatter(1, own, -torch.inf))  # (C,)
        return pull.mean() + push.mean()

    @staticmethod
    def _log_one_plus_sum_exp(logits: Tensor) -> Tensor:
        """Return log(1 + sum of exp over the batch): (B, n) -> (n,)."""
        # The 1 enters as a row e^0, so no column is empty and no gradient is -inf - -inf.
        return F.pad(logits, (0, 0, 0, 1)).logsumexp(dim=0)
