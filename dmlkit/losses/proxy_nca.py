"""Proxy-NCA loss (Movshovitz-Attias et al., ICCV 2017), https://arxiv.org/abs/1703.07464."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class ProxyNCALoss(nn.Module):
    """Want each embedding nearer to the proxy of its class than to those of all other classes.

    Mean over the batch of -log(e^{-c d(x, p_y)} / sum_z e^{-c d(x, p_z)}), the loss of the
    paper's algorithm 1, with d the squared Euclidean distance between unit vectors. Each class
    owns one learned proxy p, normalised in ``forward``.

    The paper sums over the proxies of the other classes only, z != y, and has no scale c: the
    defaults here. The loss is then below 0 once the own proxy is by far the nearest.
    pytorch-metric-learning and later work sum over all proxies, a soft-max.

    ProxyNCA++ (Teh, DeVries and Taylor, ECCV 2020, https://arxiv.org/abs/2004.01113) is this loss
    with ``softmax_scale=9, positive_in_denominator=True`` (c is 1 / T there, T = 1/9), beside
    changes to the network and to the learning rate of the proxies.

    The proxies start normal with variance 1/D, so of length about 1: at the D = 64 of the paper
    that is the start of the released code of ProxyNCA++.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        softmax_scale: c above.
        positive_in_denominator: whether the sum includes z = y.

    Raises:
        ValueError: if ``softmax_scale`` is not above 0, or if the sum would be empty, as one class
            has no other.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        softmax_scale: float = 1.0,
        positive_in_denominator: bool = False,
    ) -> None:
        super().__init__()
        if not softmax_scale > 0:
            raise ValueError(f"{softmax_scale=} must be above 0")
        if num_classes < 2 and not positive_in_denominator:
            raise ValueError("one class has no other to sum over; set positive_in_denominator=True")
        self.softmax_scale = softmax_scale
        self.positive_in_denominator = positive_in_denominator
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) * embedding_dim**-0.5)

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label on the CPU is outside [0, C).
        """
        check_proxy_inputs(self, embeddings, labels, pairs, num_classes=len(self.proxies))
        cosine = cosine_similarity(embeddings, F.normalize(self.proxies))  # (B, C)
        # -c d = -c (2 - 2 cosine), of which -2 c is the same above and below the fraction line.
        logits = 2 * self.softmax_scale * cosine  # (B, C)
        if self.positive_in_denominator:
            return F.cross_entropy(logits, labels)
        own = labels[:, None]  # (B, 1)
        others = logits.scatter(1, own, -torch.inf)  # (B, C)
        return (others.logsumexp(dim=1) - logits.gather(1, own).squeeze(1)).mean()
