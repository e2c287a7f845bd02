"""Weights from a file, into the network they were made for and no other."""

from pathlib import Path

import torch
from torch import Tensor, nn


def load_weights(network: nn.Module, path: Path, *, freeze_batch_norm: bool) -> None:
    """Load a state dict into ``network``, refusing anything that does not fit it exactly.

    The file is read without running code from it. Half-precision weights become float32. Files of
    old PyTorch versions fit too: without counts of batches, or with batch norms of shape (1, C).

    Args:
        network: a network; its classifier, if it has one, is left as it is.
        path: file written by ``torch.save(network.state_dict())``; what the network has no place
            for, such as a classifier, is ignored.
        freeze_batch_norm: whether training will keep batch norms in evaluation mode.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no weights file {path}; set WEIGHTS to a path, to none, or to imagenet for "
            "torchvision's (with INPUT_CONVENTION=torchvision; for googlenet, tensorflow)"
        )
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise ValueError(
            f"{path} is not a PyTorch state dict ({type(error).__name__}); set WEIGHTS to one"
        ) from error
    wanted = {k: v for k, v in network.state_dict().items() if _is_needed(k, state)}
    for key, value in wanted.items():
        if isinstance(state.get(key), Tensor) and state[key].shape == (1, *value.shape):
            state[key] = state[key][0]
    wrong = [k for k, v in wanted.items() if not fits(state.get(k), v)]
    if wrong:
        raise ValueError(
            f"{path} holds weights of another network: {len(wrong)} of {len(wanted)} tensors of "
            f"{type(network).__name__} are missing or of another shape, first {wrong[0]}; "
            "set TRUNK to the network the file was made for"
        )
    state = {key: state[key] for key in wanted}
    if has_folded_batch_norm(state) and not freeze_batch_norm:
        raise ValueError(
            f"the batch norms of {path} are folded into its convolutions, and training their "
            "statistics would destroy the network; set FREEZE_BN=True"
        )
    network.load_state_dict(state, strict=False)


def fits(found: object, wanted: Tensor) -> bool:
    """Whether what a file holds is a tensor that can be copied to ``wanted``, of its shape."""
    return (
        isinstance(found, Tensor)
        and found.shape == wanted.shape
        and found.layout == torch.strided
        and not (found.is_meta or found.is_complex() or found.is_quantized)
        # Else a single stored number may stand for as many as would fill the memory.
        and found.untyped_storage().nbytes() >= found.nbytes
    )


def has_folded_batch_norm(state: dict[str, Tensor]) -> bool:
    """Whether all batch norms only add a bias: mean 0, variance 1, scale 1, shifts not all 0."""
    layers = [k.removesuffix("running_var") for k in state if k.endswith("running_var")]
    identity = all(
        (state[k + "running_mean"] == 0).all()
        and (state[k + "running_var"] == 1).all()
        and (state[k + "weight"] == 1).all()
        for k in layers
    )
    return bool(layers) and identity and any(state[k + "bias"].any() for k in layers)


def _is_needed(key: str, state: dict[str, Tensor]) -> bool:
    """Whether ``state`` must hold ``key``: no classifier, nor a count that old files lack."""
    is_absent_count = key.endswith("num_batches_tracked") and key not in state
    return not key.startswith(("classifier.", "fc.")) and not is_absent_count
