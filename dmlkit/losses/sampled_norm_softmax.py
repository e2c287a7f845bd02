"""NormSoftmax with class subsampling (Zhai and Wu, BMVC 2019), https://arxiv.org/abs/1811.12649."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlkit.distances import cosine_similarity
from dmlkit.losses.norm_softmax import NormSoftmaxLoss
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class SampledNormSoftmaxLoss(NormSoftmaxLoss):
    """Classify as NormSoftmax does, among the classes of the batch and some others.

    The paper leaves open which others. Here each call takes the b classes of the batch and S - b
    others, uniform without replacement, by PyTorch's own generator. With all classes this is
    :class:`dmlkit.losses.norm_softmax.NormSoftmaxLoss`; with fewer and without the correction
    below it is never above it. In evaluation mode (``eval()``) nothing is drawn: all classes.

    The correction counts each other class (C - b) / (S - b) times, one over the probability to
    draw it (importance sampling: Bengio and Senecal 2008; Jean et al. 2015,
    https://arxiv.org/abs/1412.2007). The sum of exponentials is then right on average, but not its
    logarithm: the loss stays below the full one on average (Jensen's inequality).

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        num_sampled: size of the subset, S; a batch of S or more classes has no others.
        temperature: sigma in the paper.
        corrected: whether to apply the correction.
        sparse: whether the gradient of the proxies holds only the rows of the subset, which needs
            an optimiser that can use it: SparseAdam, or SGD without weight decay.

    Raises:
        ValueError: if ``num_sampled`` is below 2, or if ``temperature`` is not above 0.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        num_sampled: int,
        temperature: float = 0.05,
        corrected: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__(num_classes, embedding_dim, temperature=temperature)
        if num_sampled < 2:
            raise ValueError(f"{num_sampled=} leaves no class to compare with; use at least 2")
        self.num_sampled = num_sampled
        self.corrected = corrected
        self.sparse = sparse

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label is outside [0, C).
        """
        if not self.training:
            return super().forward(embeddings, labels, pairs=pairs)
        num_classes = len(self.proxies)
        # On a GPU too: ``unique`` waits for it anyway, and a wrong label would pass for another.
        check_proxy_inputs(self, embeddings, labels.cpu(), pairs, num_classes=num_classes)
        of_batch = labels.unique()  # (b,)
        subset = add_random_classes(of_batch, self.num_sampled, num_classes)  # (S,)
        own = torch.searchsorted(subset, labels)  # (B,), places in the subset
        proxies = F.normalize(F.embedding(subset, self.proxies, sparse=self.sparse))  # (S, D)
        logits = cosine_similarity(embeddings, proxies) / self.temperature  # (B, S)
        num_others = len(subset) - len(of_batch)
        if self.corrected and num_others:
            weight = (num_classes - len(of_batch)) / num_others
            shift = torch.full_like(logits[:1], math.log(weight))  # (1, S)
            logits = logits + shift.index_fill(1, own, 0.0)
        return F.cross_entropy(logits, own)


def add_random_classes(classes: Tensor, size: int, num_classes: int) -> Tensor:
    """Return sorted ``classes`` with random others up to ``size`` (S,), in time that S decides."""
    if size >= num_classes:
        return torch.arange(num_classes, device=classes.device)
    if 4 * size > num_classes:  # too many draws would repeat a class
        rank = torch.randperm(num_classes, device=classes.device)
        rank[classes] = -1
        return rank.topk(max(size, len(classes)), largest=False).indices.sort().values
    while (missing := size - len(classes)) > 0:
        drawn = torch.randint(num_classes, (missing,), device=classes.device)
        classes = torch.cat([classes, drawn]).unique()
    return classes
