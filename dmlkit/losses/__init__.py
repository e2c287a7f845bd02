"""Metric-learning losses: ``loss(embeddings, labels, *, pairs=None) -> scalar``.

Embeddings (B, D) arrive L2-normalised and are not normalised again; labels (B,) are int64.
``pairs``, two (B, B) boolean masks from :mod:`dmlkit.miners`, restricts what the loss sees.
"""

from dmlkit.losses.contrastive import ContrastiveLoss as ContrastiveLoss
from dmlkit.losses.multi_similarity import MultiSimilarityLoss as MultiSimilarityLoss
from dmlkit.losses.norm_softmax import NormSoftmaxLoss as NormSoftmaxLoss
from dmlkit.losses.triplet import TripletLoss as TripletLoss
