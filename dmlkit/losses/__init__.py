"""Metric-learning losses: ``loss(embeddings, labels, *, pairs=None) -> scalar``.

Embeddings (B, D) arrive L2-normalised and are not normalised again; labels (B,) are int64.
``pairs``, two (B, B) boolean masks from :mod:`dmlkit.miners`, restricts what the loss sees.
"""

from torch import nn

from dmlkit.losses.contrastive import ContrastiveLoss as ContrastiveLoss
from dmlkit.losses.multi_similarity import MultiSimilarityLoss as MultiSimilarityLoss
from dmlkit.losses.norm_softmax import NormSoftmaxLoss as NormSoftmaxLoss
from dmlkit.losses.triplet import TripletLoss as TripletLoss


def hyperparameters(loss: nn.Module) -> dict[str, float | str]:
    """Return name and value of the settings of a loss, for the row of a run."""
    return {
        name: value
        for name, value in vars(loss).items()
        if isinstance(value, int | float | str) and name != "training" and name[0] != "_"
    }
