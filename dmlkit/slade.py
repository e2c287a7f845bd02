"""Teacher and student of SLADE (Duan et al., CVPR 2021), https://arxiv.org/abs/2011.10269.

A teacher learns from labelled images and clusters unlabelled ones; a student learns from both. The
authors published no code: equations, with their numbers, and most values are those of a third-party
implementation whose author had the paper.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from dmlkit.batches import Batch, Transform, image_batches
from dmlkit.datasets import ImageSet, Splits
from dmlkit.evaluation import embed
from dmlkit.losses import (
    GlobalCrossEntropyLoss,
    LocalCrossEntropyLoss,
    SimilarityDistributionLoss,
    response_similarity,
)
from dmlkit.miners import Pairs, all_pairs
from dmlkit.models import FeatureBasis, class_means
from dmlkit.processes import of_all, of_first
from dmlkit.pseudo_labels import agreement, cluster, mine_by_similarity
from dmlkit.samplers import MPerClassSampler
from dmlkit.seeding import derive_seed
from dmlkit.training import Fit, fit

MINING = ("similarity", "similarity_and_cluster", "cluster")
COMPARISONS = ("distribution", "local_cross_entropy", "global_cross_entropy", "none")
Miner = Callable[[Tensor, Tensor], Pairs]


@dataclass(frozen=True)
class Settings:
    """What determines teacher and student, beside their ranking loss.

    Where neither the paper nor the third party is known to say, the value is ours; chapter 5 lists
    which.

    Args:
        steps: optimiser steps of a teacher, and of a student in each round.
        batch_size: labelled images of a step; a student has as many of the pool beside them (32
            and 32 in the paper).
        images_per_class: images of each class, or cluster, in a batch.
        learning_rate: Adam's, of trunk and head.
        loss_rate: of the feature basis and of parameters of the loss.
        weight_decay: L2, for all parameters.
        num_clusters: pseudo labels, k in the paper.
        rounds: times that the student becomes the next teacher.
        warm_up_steps: steps before those of a student, in which the basis alone learns.
        mining: which pairs of the pool count, see ``StudentLoss``.
        comparison: how the basis learns from the pool, see ``StudentLoss``.
        mined_weight: lambda_1.
        basis_weight: lambda_2.
        margin: m, see ``SimilarityDistributionLoss``.
        variance_weight: lambda_v, see there.
        momentum: beta, see there.
        gradient: damped or full, see there.
        basis_start: ``random`` vectors, or the ``class_means`` of the teacher's embeddings.
        basis_vectors: at least as many as labelled classes; 0 for as many.
    """

    steps: int
    batch_size: int
    images_per_class: int
    learning_rate: float
    loss_rate: float
    num_clusters: int
    weight_decay: float = 0.0
    rounds: int = 1
    warm_up_steps: int = 100
    mining: str = "similarity"
    comparison: str = "distribution"
    mined_weight: float = 1.0
    basis_weight: float = 0.25
    margin: float = 0.5
    variance_weight: float = 1.0
    momentum: float = 0.99
    gradient: str = "damped"
    basis_start: str = "random"
    basis_vectors: int = 0


class StudentLoss(nn.Module):
    """Learn from labels, from pairs of the pool, and from a basis in which both are described.

    With L the base loss, W f the responses of the feature basis (``FeatureBasis``) and s their
    cosine,

        L(labelled) + mined_weight L(pool; pairs)
            + basis_weight (cross-entropy of W f (labelled, eq. 3) + comparison of s (pool, eq. 5))

    (eqs. 2 and 9). ``mining`` says which pairs of the pool count: ``similarity`` those that s puts
    beyond its running means (eq. 7), ``similarity_and_cluster`` of these the ones that the pseudo
    labels agree with, ``cluster`` all that the pseudo labels say. The similarity distribution loss
    is always evaluated, since its running means are the thresholds; ``comparison`` says whether it
    is learned from, or one of the two alternatives, or none. With basis_weight 0 nothing is
    learned about the basis: use ``cluster`` then.

    Args:
        base_loss: contrastive or Multi-Similarity, called with pairs.
        basis: at least as many vectors as there are labelled classes.
        num_clusters: number of pseudo labels.
        mining: one of ``MINING``.
        comparison: one of ``COMPARISONS``.
        mined_weight: lambda_1 in the paper.
        basis_weight: lambda_2 in the paper.
        statistics: its running statistics are the thresholds of ``similarity``; the default has the
            third party's values.

    Raises:
        ValueError: an unknown choice, a weight below 0, or mining by the similarity of a basis that
            learns nothing.
    """

    def __init__(
        self,
        base_loss: nn.Module,
        basis: FeatureBasis,
        *,
        num_clusters: int,
        mining: str = "similarity",
        comparison: str = "distribution",
        mined_weight: float = 1.0,
        basis_weight: float = 0.25,
        statistics: SimilarityDistributionLoss | None = None,
    ) -> None:
        super().__init__()
        if mining not in MINING:
            raise ValueError(f"{mining=} is unknown; choose from {', '.join(MINING)}")
        if comparison not in COMPARISONS:
            raise ValueError(f"{comparison=} is unknown; choose from {', '.join(COMPARISONS)}")
        if mined_weight < 0 or basis_weight < 0:
            raise ValueError(f"{mined_weight=} and {basis_weight=} must be 0 or more")
        if not basis_weight and mining != "cluster":
            raise ValueError(f"a basis of weight 0 learns nothing; {mining=} should be cluster")
        self.base_loss = base_loss
        self.basis = basis
        self.mined: dict[str, Tensor] = {}  # of the last batch, where pairs are mined by similarity
        self.mining = mining
        self.mined_weight = mined_weight
        self.basis_weight = basis_weight
        self.statistics = statistics or SimilarityDistributionLoss()
        self.comparison = self.statistics
        if comparison == "local_cross_entropy":
            self.comparison = LocalCrossEntropyLoss()
        elif comparison == "global_cross_entropy":
            # A cluster is in one batch of many; at 0.99 its centroid would hardly move.
            self.comparison = GlobalCrossEntropyLoss(num_clusters, len(basis.vectors), momentum=0.9)
        elif comparison == "none":
            self.comparison = None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        pool_embeddings: Tensor,
        clusters: Tensor,
        *,
        pairs: Pairs | None = None,
    ) -> Tensor:
        """Return the scalar loss.

        Args:
            embeddings: unit embeddings (B, D) of labelled images.
            labels: their classes (B,) in 0..C-1.
            pool_embeddings: unit embeddings (U, D) of images of the pool.
            clusters: their pseudo labels (U,).
            pairs: pairs of the labelled images that count; None for all.
        """
        self.mined = {}
        responses = self.basis(pool_embeddings)  # (U, K)
        compared = self.comparison(responses, clusters) if self.comparison else 0.0
        if self.comparison is not self.statistics:  # its running means are needed all the same
            self.statistics(responses.detach(), clusters)
        loss = self.base_loss(embeddings, labels, pairs=pairs)
        if self.mined_weight:
            mined = self._mine(responses.detach(), clusters)
            loss = loss + self.mined_weight * self.base_loss(pool_embeddings, clusters, pairs=mined)
        if self.basis_weight:
            classified = F.cross_entropy(self.basis(embeddings), labels)
            loss = loss + self.basis_weight * (classified + compared)
        return loss

    def _mine(self, responses: Tensor, clusters: Tensor) -> Pairs:
        """Return the pairs of the pool that the base loss learns from."""
        if self.mining == "cluster":
            return all_pairs(clusters)
        upper, lower = self.statistics.thresholds
        labels = clusters if self.mining == "similarity_and_cluster" else None
        similarity = response_similarity(responses)
        positives, negatives = mine_by_similarity(similarity, lower, upper, labels=labels)
        num_pairs = len(clusters) * (len(clusters) - 1)
        agreeing = (positives & (clusters[:, None] == clusters)).sum()
        self.mined = {
            "mined_positive": positives.sum() / num_pairs,
            "mined_negative": negatives.sum() / num_pairs,
            "mined_precision": agreeing / positives.sum(),
        }
        return positives, negatives


def train_teacher(
    model: nn.Module,
    loss_fn: nn.Module,
    images: ImageSet,
    settings: Settings,
    *,
    transform: Transform,
    seed: int,
    miner: Miner | None = None,
    **options: Any,
) -> Fit:
    """Train ``model`` on labelled images (section 3.1).

    Args:
        model: from transformed images to unit embeddings.
        loss_fn: a loss of ``dmlkit.losses``.
        images: labelled images.
        settings: how long and in what batches.
        transform: from stored images to what the model takes, such as random crops.
        seed: seed of the sampler.
        miner: which pairs count; None for all.
        options: of ``dmlkit.training.fit``.
    """

    def compute_loss(batch: Batch) -> Tensor:
        embeddings, labels = of_all(model(batch[0])), of_all(batch[1])
        return loss_fn(embeddings, labels, pairs=miner(embeddings, labels) if miner else None)

    batches = _batches(images, settings, transform, seed, model)
    optimizer = _optimizer(model, loss_fn, settings)
    return fit([model, loss_fn], batches, compute_loss, optimizer, settings.steps, **options)


def self_train(
    model: nn.Module,
    base_loss: nn.Module,
    images: ImageSet,
    pool: ImageSet,
    settings: Settings,
    *,
    transform: Transform,
    pool_transform: Transform,
    plain_view: Transform,
    seed: int,
    first_state: dict[str, Tensor] | None = None,
    relabel: Callable[[Tensor], Tensor] = lambda clusters: clusters,
    **options: Any,
) -> tuple[Fit, list[dict[str, float]]]:
    """Make ``model``, a teacher, its own student (section 3.3), round after round.

    Args:
        model: the teacher; in the end the last student, at its last step.
        base_loss: contrastive or Multi-Similarity, called with pairs.
        images: labelled images.
        pool: unlabelled images; their labels are only compared with.
        settings: what to do.
        transform: from stored images to what the model takes, such as random crops.
        pool_transform: the same with generators of its own, for the pool.
        plain_view: how images are embedded for clustering.
        seed: of samplers, clusters and the basis.
        first_state: weights that a student starts from; None for its teacher's.
        relabel: what a control makes of the clusters (U,).
        options: of ``train_student``.

    Returns:
        The fits of all rounds as one, chosen in the last; and for each round how far pseudo labels
        and true ones agree, see ``agreement``, with the number of ``clusters``.
    """
    if settings.rounds < 1:
        raise ValueError(f"rounds={settings.rounds} train no student; use at least 1")
    device, fitted, told = next(model.parameters()).device, Fit(), []
    for number in range(settings.rounds):
        if number:
            model.load_state_dict(fitted.best_states[0])
        own_seed = derive_seed(seed, "round", number)
        embeddings = embed(model, pool, plain_view, device=device)
        clusters = cluster(embeddings, settings.num_clusters, seed=own_seed).labels
        labels = of_first(relabel(clusters))
        found = agreement(labels, pool.labels)
        told.append(found | {"clusters": int(labels.max()) + 1})
        torch.manual_seed(own_seed)  # of the basis, whatever was drawn before
        num_vectors = max(settings.basis_vectors, images.num_classes)
        basis = FeatureBasis(num_vectors, embeddings.shape[1])
        if settings.basis_start == "class_means":
            of_labelled = embed(model, images, plain_view, device=device)
            basis.start_from(class_means(of_labelled, images.labels))
        if first_state is not None:
            model.load_state_dict(first_state)
        loss_fn = StudentLoss(
            base_loss,
            basis,
            num_clusters=int(labels.max()) + 1,
            mining=settings.mining,
            comparison=settings.comparison,
            mined_weight=settings.mined_weight,
            basis_weight=settings.basis_weight,
            statistics=SimilarityDistributionLoss(
                margin=settings.margin,
                variance_weight=settings.variance_weight,
                momentum=settings.momentum,
                gradient=settings.gradient,
            ),
        ).to(device)
        latest = train_student(
            model,
            loss_fn,
            images,
            with_labels(pool, labels),
            settings,
            transform=transform,
            pool_transform=pool_transform,
            seed=own_seed,
            **options,
        )
        fitted = _in_a_row(fitted, latest)
    return fitted, told


def train_student(
    model: nn.Module,
    loss_fn: StudentLoss,
    images: ImageSet,
    pool: ImageSet,
    settings: Settings,
    *,
    transform: Transform,
    pool_transform: Transform,
    seed: int,
    miner: Miner | None = None,
    **options: Any,
) -> Fit:
    """Train ``model`` on labelled images and on a pool with pseudo labels, after a warm-up.

    The warm-up is a fit of its own: no step of it is chosen, and it is not in the history.

    Args:
        model: from transformed images to unit embeddings.
        loss_fn: what to learn.
        images: labelled images.
        pool: images whose labels are their clusters, see ``with_labels``.
        settings: how long and in what batches.
        transform: from stored images to what the model takes.
        pool_transform: the same with generators of its own, for the pool.
        seed: seed of both samplers.
        miner: which pairs of labelled images count; None for all.
        options: of ``dmlkit.training.fit``.

    Returns:
        What ``fit`` returns; each entry of the history also holds the running statistics, and means
        over the steps since the last one of the shares of the pool's pairs that were mined as
        positive and as negative, and of the share of these positives that clusters agree with.
    """
    told, mined = [], []

    def compute_loss(batch: Batch) -> Tensor:
        # Labelled images and as many of the pool, in one pass.
        ours, of_pool = (of_all(half) for half in model(batch[0]).chunk(2))
        labels, clusters = (of_all(half) for half in batch[1].chunk(2))
        pairs = miner(ours, labels) if miner else None
        loss = loss_fn(ours, labels, of_pool, clusters, pairs=pairs)
        mined.append(loss_fn.mined)
        return loss

    def observe() -> dict[str, float]:
        names = ("mean_positive", "variance_positive", "mean_negative", "variance_negative")
        told.append({name: getattr(loss_fn.statistics, name).item() for name in names})
        for name in mined[-1]:
            told[-1][name] = torch.stack([shares[name] for shares in mined]).nanmean().item()
        mined.clear()
        return {}

    if settings.warm_up_steps and not loss_fn.basis_weight:
        raise ValueError("a basis of weight 0 has nothing to warm up; set warm_up_steps to 0")

    def batches(seed: int, *transforms: Transform) -> Iterator[Batch]:
        both = zip(
            _batches(images, settings, transforms[0], derive_seed(seed, "labelled"), model),
            _batches(pool, settings, transforms[1], derive_seed(seed, "pool"), model),
            strict=True,
        )
        return ((torch.cat([ours, theirs]), torch.cat([x, y])) for (ours, x), (theirs, y) in both)

    if warm_up := settings.warm_up_steps:
        # With draws of its own, so that students train on the same batches however long it is.
        own_batches = batches(derive_seed(seed, "warm-up"), *deepcopy((transform, pool_transform)))
        still = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in still:
            parameter.requires_grad_(False)
        basis_alone = Adam(loss_fn.parameters(), lr=settings.loss_rate)
        parts = [model, loss_fn]
        fit(parts, own_batches, compute_loss, basis_alone, warm_up, description="warm-up")
        mined.clear()
        for parameter in still:
            parameter.requires_grad_(True)
    fitted = fit(
        [model, loss_fn],
        batches(seed, transform, pool_transform),
        compute_loss,
        _optimizer(model, loss_fn, settings),
        settings.steps,
        observe=observe,
        **options,
    )
    for entry, statistics in zip(fitted.history, told, strict=True):
        entry |= statistics
    return fitted


@dataclass(frozen=True)
class Replicate:
    """Where all teachers and students of one replicate begin, and how they see images.

    What ``teach`` and ``learn`` return can be kept by ``torch.save``, and no random numbers drawn
    before have a part in it: ``chosen`` and ``last``, states of the model at the chosen step and
    the last one; ``history``, ``best_step`` and ``seconds`` of the ``Fit``; and ``pseudo_labels``,
    of each round of a student what ``self_train`` tells of its clusters.

    Args:
        splits: labelled, validation, test and unlabelled images.
        start: the model that all begin as.
        random_view: makes the transform of training images from a seed.
        plain_view: the transform of all others.
        measure: metrics of a model on validation images.
        seed: the replicate.
        options: of ``dmlkit.training.fit``.
    """

    splits: Splits
    start: nn.Module
    random_view: Callable[..., Transform]
    plain_view: Transform
    measure: Callable[[nn.Module, ImageSet], dict[str, float]]
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def new_model(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        """Return a copy of the start, with the weights of ``state`` if given."""
        model = deepcopy(self.start)
        if state is not None:
            model.load_state_dict(state)
        return model

    def teach(
        self,
        base_loss: nn.Module,
        settings: Settings,
        *,
        miner: Miner | None = None,
        state: dict[str, Tensor] | None = None,
        name: str = "teacher",
    ) -> dict[str, Any]:
        """Train a teacher, from the start or on from a ``state``."""
        model = self.new_model(state)
        fitted = train_teacher(
            model,
            base_loss,
            self.splits.train,
            settings,
            transform=self.random_view(seed=derive_seed(self.seed, name, "views")),
            seed=derive_seed(self.seed, name),
            miner=miner,
            **self._options(model, name),
        )
        return _kept(model, fitted, [])

    def learn(
        self,
        teacher: dict[str, Any],
        base_loss: nn.Module,
        settings: Settings,
        *,
        miner: Miner | None = None,
        pool: ImageSet | None = None,
        relabel: Callable[[Tensor], Tensor] = lambda clusters: clusters,
        from_start: bool = False,
        name: str = "student",
    ) -> dict[str, Any]:
        """Train a student of what ``teach`` returned; see ``self_train``.

        All students of a replicate see the same batches as far as their clusters are the same.

        Args:
            teacher: whose chosen state clusters the pool.
            base_loss: the ranking loss.
            settings: what to do.
            miner: which pairs of labelled images count.
            pool: other images than the unlabelled ones.
            relabel: see ``self_train``.
            from_start: begin as the teacher began, not as it ended.
            name: of the progress bar.
        """
        model = self.new_model(teacher["chosen"])
        fitted, told = self_train(
            model,
            base_loss,
            self.splits.train,
            self.splits.unlabelled if pool is None else pool,
            settings,
            transform=self.random_view(seed=derive_seed(self.seed, "student", "views")),
            pool_transform=self.random_view(seed=derive_seed(self.seed, "student", "pool")),
            plain_view=self.plain_view,
            seed=derive_seed(self.seed, "student"),
            first_state=deepcopy(self.start.state_dict()) if from_start else None,
            relabel=relabel,
            miner=miner,
            **self._options(model, name),
        )
        return _kept(model, fitted, told)

    def _options(self, model: nn.Module, name: str) -> dict[str, Any]:
        """Return options of ``fit``, validation on held-out classes included if there are any."""
        held_out = self.splits.validation
        validate = held_out and (lambda: self.measure(model, held_out))
        description = f"{name}, seed {self.seed}"
        return self.options | {"validate": validate, "description": description}


def _kept(model: nn.Module, fitted: Fit, told: list[dict[str, float]]) -> dict[str, Any]:
    chosen = {name: tensor.cpu() for name, tensor in fitted.best_states[0].items()}
    last = chosen  # which takes no room a second time
    if fitted.best_step < fitted.history[-1]["step"]:
        last = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    return {
        "chosen": chosen,
        "last": last,
        "history": fitted.history,
        "best_step": fitted.best_step,
        "seconds": fitted.seconds,
        "pseudo_labels": told,
    }


def _in_a_row(before: Fit, latest: Fit) -> Fit:
    """Return two fits as one, with the states of the latter."""
    end = before.history[-1] if before.history else {"step": 0, "images_seen": 0}
    moved = [
        entry | {name: entry[name] + end[name] for name in ("step", "images_seen")}
        for entry in latest.history
    ]
    return Fit(
        before.history + moved,
        end["step"] + latest.best_step,
        latest.best_states,
        before.seconds + latest.seconds,
    )


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Return the images of both sets, those of ``second`` under labels of their own.

    Raises:
        ValueError: their images are not of one size.
    """
    names = tuple(
        f"{part}: {name}"
        for part, images in (("1", first), ("2", second))
        for name in images.class_names
    )
    labels = torch.cat([first.labels, first.num_classes + second.labels])
    if first.images is second.images:
        index = torch.cat([first.index, second.index])
        return replace(first, labels=labels, class_names=names, index=index)
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ValueError(
            f"images are {tuple(first.images.shape[1:])} and {tuple(second.images.shape[1:])}; "
            "load both sets with the same CACHE_SIZE"
        )
    sizes = None
    if first.sizes is not None and second.sizes is not None:
        sizes = torch.cat([first.sizes, second.sizes])
    return ImageSet(
        _TwoStores(first.images, second.images),
        labels,
        names,
        f"{first.fingerprint}+{second.fingerprint}",
        torch.cat([first.index, len(first.images) + second.index]),
        sizes,
    )


class _TwoStores:
    """Two stores one after the other, of which neither is copied."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return the images of ``rows`` (B,), in this order."""
        is_first = rows < len(self.first)
        ours = self.first.index_select(dim, rows[is_first])
        found = ours.new_empty(len(rows), *ours.shape[1:])
        found[is_first] = ours
        found[~is_first] = self.second.index_select(dim, rows[~is_first] - len(self.first))
        return found


def with_labels(images: ImageSet, labels: Tensor) -> ImageSet:
    """Return ``images`` under other ``labels`` (N,) in 0..C-1, such as pseudo labels."""
    names = tuple(f"cluster {number}" for number in range(int(labels.max()) + 1))
    return replace(images, labels=labels.cpu(), class_names=names)


def _batches(
    images: ImageSet, settings: Settings, transform: Transform, seed: int, model: nn.Module
) -> Iterator[Batch]:
    sampler = MPerClassSampler(
        images.labels,
        batch_size=settings.batch_size,
        images_per_class=settings.images_per_class,
        seed=seed,
    )
    return image_batches(images, sampler, transform, next(model.parameters()).device)


def _optimizer(model: nn.Module, loss_fn: nn.Module, settings: Settings) -> Adam:
    groups = [
        {"params": model.parameters(), "lr": settings.learning_rate},
        {"params": loss_fn.parameters(), "lr": settings.loss_rate},
    ]
    return Adam(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
