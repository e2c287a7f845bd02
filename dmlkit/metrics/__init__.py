"""How good an embedding is: retrieval, binary codes, clustering; every convention is stated."""

from dmlkit.metrics.binary_codes import CodeRetrieval as CodeRetrieval
from dmlkit.metrics.binary_codes import binarise as binarise
from dmlkit.metrics.binary_codes import code_metrics as code_metrics
from dmlkit.metrics.clustering import Clusters as Clusters
from dmlkit.metrics.clustering import clustering_metrics as clustering_metrics
from dmlkit.metrics.clustering import kmeans as kmeans
from dmlkit.metrics.ordering import (
    rank_correlation_within_classes as rank_correlation_within_classes,
)
from dmlkit.metrics.ordering import similarity_to_views as similarity_to_views
from dmlkit.metrics.retrieval import Retrieval as Retrieval
from dmlkit.metrics.retrieval import count_relevant as count_relevant
from dmlkit.metrics.retrieval import retrieval_metrics as retrieval_metrics
