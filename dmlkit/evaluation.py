"""Embed a set with a model and measure retrieval on it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmlkit.datasets import ImageSet
from dmlkit.metrics import Retrieval, retrieval_metrics


@dataclass(frozen=True)
class Evaluation:
    """Embeddings of a set and what retrieval among them yields.

    Args:
        embeddings: (N, D) float32 unit rows, on the CPU.
        retrieval: per-query results.
    """

    embeddings: Tensor
    retrieval: Retrieval

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the queries, fractions in [0, 1]."""
        return self.retrieval.means()


@torch.no_grad()
def embed(
    model: nn.Module,
    image_set: ImageSet,
    transform: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    batch_size: int = 250,
) -> Tensor:
    """Return (N, D) float32 outputs of ``model`` in evaluation mode for every image, on the CPU.

    Args:
        model: from transformed images to embeddings or features.
        image_set: the images.
        transform: from stored images to what the model takes, e.g. ``centre_crop``.
        device: where the model is.
        batch_size: images at a time; the result does not depend on it beyond rounding.
    """
    model.eval()
    parts = [
        model(transform(image_set.gather(positions).to(device))).float().cpu()
        for positions in torch.arange(len(image_set)).split(batch_size)
    ]
    return torch.cat(parts)


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    transform: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    ks: tuple[int, ...],
) -> Evaluation:
    """Embed ``image_set`` and let each image query all the others."""
    embeddings = embed(model, image_set, transform, device=device)
    return evaluate_embeddings(embeddings, image_set.labels, ks=ks)


def evaluate_embeddings(embeddings: Tensor, labels: Tensor, *, ks: tuple[int, ...]) -> Evaluation:
    """Normalise ``embeddings`` (N, D) to unit rows and let each row query all the others."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return Evaluation(unit, retrieval_metrics(unit, labels, ks=ks))
