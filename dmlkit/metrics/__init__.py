"""How good an embedding is: retrieval, binary codes, clustering; exact, every convention stated."""

from dmlkit.metrics.retrieval import Retrieval, count_relevant, retrieval_metrics

__all__ = ["Retrieval", "count_relevant", "retrieval_metrics"]
