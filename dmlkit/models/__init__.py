"""Networks: ``model.trunk(images) -> (B, F)``, ``model.head(features) -> (B, D)``, unit rows."""

from dmlkit.models.feature_basis import FeatureBasis as FeatureBasis
from dmlkit.models.feature_basis import class_means as class_means
from dmlkit.models.heads import EmbeddingHead as EmbeddingHead
from dmlkit.models.heads import EmbeddingModel as EmbeddingModel
from dmlkit.models.mlp_head import MLPHead as MLPHead
from dmlkit.models.swav_head import SwAVHead as SwAVHead
from dmlkit.models.trunks import INPUT_CONVENTIONS as INPUT_CONVENTIONS
from dmlkit.models.trunks import POOLINGS as POOLINGS
from dmlkit.models.trunks import TRUNKS as TRUNKS
from dmlkit.models.trunks import Trunk as Trunk
from dmlkit.models.trunks import make_trunk as make_trunk
