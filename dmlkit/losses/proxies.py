"""What losses with parameters of each class refuse, such as proxies."""

from torch import Tensor, nn

from dmlkit.miners import Pairs


def check_proxy_inputs(
    loss: nn.Module, embeddings: Tensor, labels: Tensor, pairs: Pairs | None, *, num_classes: int
) -> None:
    """Refuse what a proxy loss cannot use.

    Args:
        loss: the loss that was called; the message names its class.
        embeddings: (B, D).
        labels: one class in [0, num_classes) for each embedding.
        pairs: None, since no two embeddings of the batch are compared.
        num_classes: number of classes that have proxies.

    Raises:
        ValueError: if ``pairs`` are given, if ``labels`` are not (B,), or if a label on the CPU
            has no proxy.
    """
    if pairs is not None:
        name = type(loss).__name__
        raise ValueError(f"{name} compares with proxies, not pairs; leave pairs out")
    check_classes(embeddings, labels, num_classes)


def check_classes(embeddings: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless there is a label for each embedding, on the CPU in [0, C)."""
    # Fewer labels than rows would pass some losses, which would then skip the other rows.
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; give one class id for each of the "
            f"{len(embeddings)} embeddings"
        )
    # Reading the extremes on a GPU would stall every step; there the kernels that index by label
    # stop on such a label themselves (except that cross-entropy would skip -100 without a word).
    if labels.is_cpu and len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"labels span {labels.min()}..{labels.max()} but the loss has num_classes="
            f"{num_classes}; relabel the training classes from 0 or raise num_classes"
        )
