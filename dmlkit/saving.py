"""A trained model as one file, which is all that is needed to use it again.

The file holds the weights and says which network they belong to and what input it wants. All of it
is plain data, read without running code from it, so that a stranger's file can do no harm.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlkit.models import INPUT_CONVENTIONS, EmbeddingHead, EmbeddingModel, Trunk, make_trunk
from dmlkit.models.weights import fits
from dmlkit.paths import write_atomically

KIND, VERSION = "dmlkit model", 1
LARGEST = 10_000  # side of an image, pixels; a file could claim one that fills the memory


@dataclass(frozen=True)
class SavedModel:
    """A model and what it takes to show images to it as in its evaluation.

    Args:
        model: images (B, 3, S, S), RGB in [0, 1], to unit embeddings (B, D); in evaluation mode.
        trunk: name of its trunk, a key of ``dmlkit.models.TRUNKS``.
        image_size: side S of the central square that the trunk sees, pixels.
        cache_size: side of the square that a whole photograph is resized to, pixels.
        short_side: above 0, photographs count in their own shape, the shorter side so many pixels
            long, and the central square is cut from that; 0 cuts it from the resized square.
        note: what else is to be known of it.
        digest: hex digest of the weights and of all of the above but the note: the same for the
            same embeddings.
    """

    model: EmbeddingModel = field(repr=False)
    trunk: str
    image_size: int
    cache_size: int
    short_side: int
    note: str
    digest: str

    @property
    def embedding_dim(self) -> int:
        """Size of an embedding, D."""
        return _embedding_dim(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def save_model(
    path: str | Path,
    model: EmbeddingModel,
    *,
    trunk: str,
    image_size: int,
    cache_size: int = 0,
    short_side: int = 0,
    note: str = "",
) -> None:
    """Write ``model`` to a file, whole or not at all; an older file of that name is replaced.

    Pooling, input convention, size of the embedding and all else about the network is read off the
    model. The sizes are the parameters of the same names in every chapter.

    Args:
        path: the file, as ``open`` understands it; ``.pt`` is usual.
        model: an ``EmbeddingModel`` of a ``Trunk`` and an ``EmbeddingHead``, on any device.
        trunk: name of the trunk, as given to ``make_trunk``.
        image_size: side of the central square that the trunk sees in evaluation, pixels.
        cache_size: see ``SavedModel``; 0 for ``image_size``.
        short_side: see ``SavedModel``.
        note: what else is to be known of it, such as what it was trained on.

    Raises:
        ValueError: a model of another kind, a trunk of another name, weights that are not finite
            float32, or sizes from which no image could be cut.
        PermissionError: the file cannot be written.
    """
    cache_size = cache_size or image_size
    _check_kind(model)
    _check_sizes(image_size, cache_size, short_side)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _check_weights(state)
    about = {
        **_describe(model, trunk),
        **{"image_size": image_size, "cache_size": cache_size, "short_side": short_side},
    }
    rebuilt = _build(about).state_dict()
    if _shapes(rebuilt) != _shapes(state):
        raise ValueError(f"the weights are not those of trunk={trunk!r}; give the name it has")
    stored = {"kind": KIND, "version": VERSION, "about": about, "note": note, "state": state}
    write_stored(path, stored | {"digest": _digest(about, state)})


def load_model(path: str | Path, *, device: torch.device | str = "cpu") -> SavedModel:
    """Return the model that ``save_model`` wrote, in evaluation mode; nothing else is needed.

    Its embeddings are, on the same machine, to the last bit those of the model that was saved.

    Args:
        path: the file, as ``open`` understands it.
        device: where to put the model, e.g. what ``dmlkit.training.choose_device`` returns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, is damaged, or was written by a newer version.
    """
    stored = read_stored(path, KIND, VERSION, "dmlkit.saving.save_model")
    about, state = stored.get("about"), stored.get("state")
    is_damaged = f"{path} is damaged: not all is there as it was written; save it again"
    parts = (about, state, stored.get("note"))
    if not all(isinstance(part, kind) for part, kind in zip(parts, (dict, dict, str), strict=True)):
        raise ValueError(is_damaged)
    try:
        # Shapes first, of a network without values: a file may claim any size in a few bytes.
        with torch.device("meta"):
            wanted = _build(about).state_dict()
        is_like = state.keys() == wanted.keys()
        if not is_like or not all(fits(state[name], value) for name, value in wanted.items()):
            raise ValueError(f"its weights are not those of {about['trunk']}")
        sizes = {name: about[name] for name in ("image_size", "cache_size", "short_side")}
        _check_sizes(**sizes)
        digest = _digest(about, state)
    # Such as a trunk that this version does not have.
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be used: {error}; update dmlkit") from error
    if stored.get("digest") != digest:
        raise ValueError(is_damaged)
    model = _build(about)
    model.load_state_dict(state)
    model.to(device).eval()
    return SavedModel(model, about["trunk"], **sizes, note=stored["note"], digest=digest)


def write_stored(path: str | Path, stored: dict[str, Any]) -> None:
    """Write tensors, numbers and text to a file, whole or not at all.

    Args:
        path: the file, as ``open`` understands it.
        stored: what ``read_stored`` is to return, its ``kind`` and ``version`` among it.

    Raises:
        PermissionError: the file cannot be written.
    """
    # Given a name, torch would refuse one without a suffix.
    with write_atomically(Path(path).expanduser()) as writable, writable.open("wb") as file:
        torch.save(stored, file)


def read_stored(path: str | Path, kind: str, version: int, writer: str) -> dict[str, Any]:
    """Return what a file of ours holds, read as data: tensors, numbers and text.

    Args:
        path: the file, as ``open`` understands it.
        kind: what it must say that it is.
        version: the newest version that can be read.
        writer: name of the function that writes such files, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, is damaged, or was written by a newer version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give one that {writer} wrote")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for half a file and for other files
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or no file that "
            f"{writer} wrote"
        ) from error
    if not isinstance(stored, dict) or str(stored.get("kind")) != kind:
        raise ValueError(
            f"{path} holds no {kind}; give a file that {writer} wrote (for the state dict of a "
            "network there is WEIGHTS, or make_trunk)"
        )
    found = stored.get("version")
    if not isinstance(found, int) or found not in range(1, version + 1):
        raise ValueError(
            f"{path} was written by a newer dmlkit (version {found} of the file, up to {version} "
            "can be read); update dmlkit"
        )
    return stored


def _check_kind(model: nn.Module) -> None:
    """Raise unless the model is one that a description can rebuild."""
    parts = (getattr(model, "trunk", None), getattr(model, "head", None))
    if type(model) is not EmbeddingModel or [type(p) for p in parts] != [Trunk, EmbeddingHead]:
        said = type(model).__name__
        if type(model) is EmbeddingModel:
            said += " of " + " and ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"cannot save a {said}: only an EmbeddingModel of a Trunk and an EmbeddingHead (where "
            "features were cached, put the head on the trunk that made them)"
        )


def _check_sizes(image_size: int, cache_size: int, short_side: int) -> None:
    """Raise unless a central square of ``image_size`` can be cut."""
    sizes = (image_size, cache_size, short_side)
    if not all(isinstance(size, int) and size <= LARGEST for size in sizes):
        raise ValueError(
            f"{image_size=}, {cache_size=} and {short_side=} should be whole numbers of pixels, up "
            f"to {LARGEST:,}"
        )
    if image_size < 1 or cache_size < image_size or (short_side and short_side < image_size):
        raise ValueError(
            f"{image_size=} cannot be cut out of {cache_size=} with {short_side=}; they should be "
            "at least as large (short_side may be 0)"
        )


def _check_weights(state: dict[str, Tensor]) -> None:
    """Raise unless all weights are finite float32."""
    for name, value in state.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"{name} is {value.dtype}; make it float32 first: model.float()")
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity, so training went wrong; train anew")


def _describe(model: EmbeddingModel, trunk: str) -> dict[str, Any]:
    """Return all that rebuilds the network without its weights."""
    mean, std = (values.flatten().cpu() for values in (model.trunk.mean, model.trunk.std))
    convention = next(
        name
        for name, wanted in INPUT_CONVENTIONS.items()
        if torch.equal(mean, torch.tensor(wanted["mean"]))
        and torch.equal(std, torch.tensor(wanted["std"]))
    )
    linear = model.head.linear
    return {
        "trunk": trunk,
        "convention": convention,
        "pooling": model.trunk.pooling,
        "freeze_batch_norm": model.trunk.freeze_batch_norm,
        "embedding_dim": _embedding_dim(model),
        "layer_norm": model.head.norm is not None,
        "bias": getattr(linear, "bias", None) is not None,
        "project": isinstance(linear, nn.Linear),
    }


def _embedding_dim(model: EmbeddingModel) -> int:
    """Return D, which without a projection is the number of features."""
    return getattr(model.head.linear, "out_features", model.trunk.out_features)


def _build(about: dict[str, Any]) -> EmbeddingModel:
    """Return the network that ``_describe`` described, its weights random."""
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers as they were
        trunk = make_trunk(
            about["trunk"],
            convention=about["convention"],
            freeze_batch_norm=about["freeze_batch_norm"],
            pooling=about["pooling"],
        )
        of_head = {name: about[name] for name in ("layer_norm", "bias", "project")}
        return EmbeddingModel(
            trunk, EmbeddingHead(trunk.out_features, about["embedding_dim"], **of_head)
        )


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple]:
    """Return name to shape and type of each tensor."""
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _digest(about: dict[str, Any], state: dict[str, Tensor]) -> str:
    """Return 16 hex digits that change with anything that changes an embedding."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
