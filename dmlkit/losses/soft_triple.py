"""SoftTriple loss (Qian et al., ICCV 2019), https://arxiv.org/abs/1909.05235."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity, euclidean_distance
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class SoftTripleLoss(nn.Module):
    """Classify by cosine to several centres per class, of which close ones are drawn together.

    An embedding x is as similar to class c as to its K learned centres w, mostly the nearest:
    S_c = sum_k q_k x . w_ck, with q the soft-max of x . w_ck / g over k. The loss is the mean over
    the batch of -log(e^{a (S_y - m)} / (e^{a (S_y - m)} + sum_{c != y} e^{a S_c}))
    + t sum_c sum_{k < l} |w_ck - w_cl| / (C K (K - 1)).
    The second term draws the centres of a class together, so that a class keeps only as many
    distinct ones as it needs; |w_ck - w_cl| is the sqrt(2 - 2 w_ck . w_cl) of the paper. The
    authors' code adds 1e-5 under that root; here centres that coincide have gradient 0.

    The defaults are those of the paper and of the authors' code; pytorch-metric-learning leaves
    the second term out. The centres are normalised in ``forward``; they start uniform in
    +-1/sqrt(C K), as in the authors' code.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        centres_per_class: K in the paper.
        scale: a above, lambda in the paper.
        softness: g above, gamma in the paper; towards 0 only the nearest centre counts.
        centre_weight: t above, tau in the paper; 0 leaves the second term out.
        margin: m above, delta in the paper, in units of cosine.

    Raises:
        ValueError: if there is no centre, or if ``scale`` or ``softness`` is not above 0.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        centres_per_class: int = 10,
        scale: float = 20.0,
        softness: float = 0.1,
        centre_weight: float = 0.2,
        margin: float = 0.01,
    ) -> None:
        super().__init__()
        if centres_per_class < 1:
            raise ValueError(f"centres_per_class={centres_per_class}; a class needs at least 1")
        if not (scale > 0 and softness > 0):
            raise ValueError(f"{scale=} and {softness=} must both be above 0")
        self.centres_per_class = centres_per_class
        self.scale = scale
        self.softness = softness
        self.centre_weight = centre_weight
        self.margin = margin
        # Centres before classes: a soft-max over few numbers is slow where they are neighbours.
        shape = centres_per_class, num_classes, embedding_dim
        bound = (num_classes * centres_per_class) ** -0.5
        self.centres = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label on the CPU is outside [0, C).
        """
        check_proxy_inputs(self, embeddings, labels, pairs, num_classes=self.centres.shape[1])
        centres = F.normalize(self.centres, dim=2)  # (K, C, D)
        similarity = self._similarity_to_classes(embeddings, centres)  # (B, C)
        own = labels[:, None]  # (B, 1)
        margin = torch.full_like(own, -self.margin, dtype=similarity.dtype)  # (B, 1)
        loss = F.cross_entropy(self.scale * similarity.scatter_add_(1, own, margin), labels)
        if self.centre_weight == 0 or self.centres_per_class == 1:
            return loss
        return loss + self.centre_weight * self._spread(centres)

    def _similarity_to_classes(self, embeddings: Tensor, centres: Tensor) -> Tensor:
        """Return S_c of each embedding and class: (B, C)."""
        cosine = cosine_similarity(embeddings, centres.flatten(0, 1))  # (B, K C)
        cosine = cosine.unflatten(1, centres.shape[:2])  # (B, K, C)
        return ((cosine / self.softness).softmax(dim=1) * cosine).sum(dim=1)

    @staticmethod
    def _spread(centres: Tensor) -> Tensor:
        """Return the sum of distances between centres of one class, over C K (K - 1)."""
        per_class, num_classes, _ = centres.shape
        distance = torch.vmap(euclidean_distance, in_dims=1)(centres)  # (C, K, K)
        return distance.triu(diagonal=1).sum() / (num_classes * per_class * (per_class - 1))
