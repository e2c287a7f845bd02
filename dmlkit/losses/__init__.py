"""Metric-learning losses: ``loss(embeddings, labels, *, pairs=None) -> scalar``.

Embeddings (B, D) arrive L2-normalised and are not normalised again; labels (B,) are int64.
``pairs``, two (B, B) boolean masks from :mod:`dmlkit.miners`, restricts what the loss sees.
"""

from torch import nn

from dmlkit.losses.arc_face import ArcFaceLoss as ArcFaceLoss
from dmlkit.losses.binomial_deviance import BinomialDevianceLoss as BinomialDevianceLoss
from dmlkit.losses.contrastive import ContrastiveLoss as ContrastiveLoss
from dmlkit.losses.contrastive import SimilarityContrastiveLoss as SimilarityContrastiveLoss
from dmlkit.losses.cos_face import CosFaceLoss as CosFaceLoss
from dmlkit.losses.fast_ap import FastAPLoss as FastAPLoss
from dmlkit.losses.hard_mining import HardMiningLoss as HardMiningLoss
from dmlkit.losses.lifted_structure import (
    GeneralizedLiftedStructureLoss as GeneralizedLiftedStructureLoss,
)
from dmlkit.losses.lifted_structure import LiftedStructureLoss as LiftedStructureLoss
from dmlkit.losses.lifted_structure import (
    ModifiedLiftedStructureLoss as ModifiedLiftedStructureLoss,
)
from dmlkit.losses.margin import MarginLoss as MarginLoss
from dmlkit.losses.multi_similarity import MultiSimilarityLoss as MultiSimilarityLoss
from dmlkit.losses.nca import NCALoss as NCALoss
from dmlkit.losses.norm_softmax import NormSoftmaxLoss as NormSoftmaxLoss
from dmlkit.losses.nt_xent import NTXentLoss as NTXentLoss
from dmlkit.losses.proxy_anchor import ProxyAnchorLoss as ProxyAnchorLoss
from dmlkit.losses.proxy_nca import ProxyNCALoss as ProxyNCALoss
from dmlkit.losses.sampled_norm_softmax import SampledNormSoftmaxLoss as SampledNormSoftmaxLoss
from dmlkit.losses.self_supervised_ranking import (
    SelfSupervisedRankingLoss as SelfSupervisedRankingLoss,
)
from dmlkit.losses.similarity_cross_entropy import (
    GlobalCrossEntropyLoss as GlobalCrossEntropyLoss,
)
from dmlkit.losses.similarity_cross_entropy import LocalCrossEntropyLoss as LocalCrossEntropyLoss
from dmlkit.losses.similarity_distribution import (
    SimilarityDistributionLoss as SimilarityDistributionLoss,
)
from dmlkit.losses.similarity_distribution import response_similarity as response_similarity
from dmlkit.losses.soft_triple import SoftTripleLoss as SoftTripleLoss
from dmlkit.losses.swav import SwAVLoss as SwAVLoss
from dmlkit.losses.triplet import TripletLoss as TripletLoss
from dmlkit.losses.weight import WeightLoss as WeightLoss


def hyperparameters(loss: nn.Module) -> dict[str, float | str]:
    """Return name and value of the settings of a loss, for the row of a run."""
    return {
        name: value
        for name, value in vars(loss).items()
        if isinstance(value, int | float | str) and name != "training" and name[0] != "_"
    }
