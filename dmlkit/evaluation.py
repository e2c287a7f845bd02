"""Embed a set with a model and measure retrieval on it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dmlkit.batches import Transform, image_batches
from dmlkit.datasets import ImageSet
from dmlkit.metrics import Retrieval, retrieval_metrics
from dmlkit.processes import of_all


@dataclass(frozen=True)
class Evaluation:
    """Embeddings of a set and what retrieval among them yields.

    Args:
        embeddings: (N, D) float32 unit rows, on the CPU.
        retrieval: per-query results.
        of_the_set: metrics that have no value per query, such as NMI, by name.
    """

    embeddings: Tensor
    retrieval: Retrieval
    of_the_set: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the queries, and those of the set, fractions in [0, 1]."""
        return self.retrieval.means() | self.of_the_set


@torch.no_grad()
def embed(
    model: nn.Module,
    image_set: ImageSet,
    transform: Transform,
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
    in_order = torch.arange(len(image_set)).split(batch_size)
    batches = image_batches(image_set, in_order, transform, device)
    embedded = torch.empty(0)
    for part, (images, _) in zip(in_order, batches, strict=True):
        rows = of_all(model(images).float(), len(part)).cpu()
        if not len(embedded):  # its place first: joining all in the end would hold them twice
            embedded = torch.empty(len(image_set), rows.shape[1])
        embedded[part] = rows
    return embedded


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    transform: Transform,
    *,
    device: torch.device,
    ks: tuple[int, ...],
    gallery: ImageSet | None = None,
) -> Evaluation:
    """Embed ``image_set`` and let each image query all the others, or those of ``gallery``.

    The metrics are computed on ``device`` too; what they take is little beside embedding.
    """
    embeddings = embed(model, image_set, transform, device=device).to(device)
    if gallery is None:
        return evaluate_embeddings(embeddings, image_set.labels, ks=ks)
    searched = embed(model, gallery, transform, device=device).to(device), gallery.labels
    return evaluate_embeddings(embeddings, image_set.labels, ks=ks, gallery=searched)


def evaluate_embeddings(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ks: tuple[int, ...],
    gallery: tuple[Tensor, Tensor] | None = None,
) -> Evaluation:
    """Normalise ``embeddings`` (N, D) to unit rows and let each query all the others.

    Args:
        embeddings: (N, D) of the queries.
        labels: (N,) their classes.
        ks: numbers of neighbours for Recall@K.
        gallery: embeddings (M, D) and labels (M,) of the images to search instead.
    """
    unit = normalize(embeddings.float(), dim=1)
    if gallery is None:
        return Evaluation(unit.cpu(), retrieval_metrics(unit, labels, ks=ks))
    searched, searched_labels = normalize(gallery[0].float(), dim=1), gallery[1]
    retrieval = retrieval_metrics(
        unit, labels, gallery=searched, gallery_labels=searched_labels, ks=ks
    )
    return Evaluation(unit.cpu(), retrieval)
