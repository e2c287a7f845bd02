"""Networks: ``model.trunk(images) -> (B, F)``, ``model.head(features) -> (B, D)``, unit rows."""

from dmlkit.models.heads import EmbeddingHead as EmbeddingHead
from dmlkit.models.heads import EmbeddingModel as EmbeddingModel
from dmlkit.models.mlp_head import MLPHead as MLPHead
from dmlkit.models.trunks import INPUT_CONVENTIONS as INPUT_CONVENTIONS
from dmlkit.models.trunks import POOLINGS as POOLINGS
from dmlkit.models.trunks import TRUNKS as TRUNKS
from dmlkit.models.trunks import Trunk as Trunk
from dmlkit.models.trunks import make_trunk as make_trunk
