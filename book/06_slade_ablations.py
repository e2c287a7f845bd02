# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. SLADE taken apart
#
# > Duan, Lin, Tran, Davis and Kuo, *SLADE*, CVPR 2021, [arXiv:2011.10269](https://arxiv.org/abs/2011.10269): their four ablations, and what a practitioner would ask.
#
# [Chapter 5](05_slade.ipynb) asks whether the student of SLADE (Duan et al., 2021) beats its teacher. Here one thing is changed at a time, always the
# same student otherwise.
#
# **Claims.** Every component adds to MAP@R on CUB-200-2011 (Wah et al., 2011): pseudo labels, the feature basis, mining (30.8, 32.5 and 33.6 after
# the teacher's 29.3); the similarity distribution loss is better than two cross-entropies of pairs; three quarters as many clusters as the pool has
# classes are best, and a quarter of that costs two points; a trunk that learned on from the images at hand by SwAV (Caron et al., 2020) is a better
# start.
#
# **Beyond the paper.** How many labels does it take? How large a pool, must it be balanced, and does it matter whether it holds the classes of the test, or no new ones at all? What if some labels are wrong? And what the paper leaves open: start, rounds, gradient, and which pairs count.

# %% tags=["parameters"]
DATASET: str = "aviary"  # images: aviary or butterflies (drawn), or one that `dmlkit data` lists
DATA_DIR: str = "data"  # folder that holds real data sets, from the project root
MAX_CLASSES: int = 0  # use only the first classes of each part of the data; 0: all
MAX_IMAGES_PER_CLASS: int = 0  # use only the first images of each class; 0: all
PROTOCOL: str = "random"  # classes: redrawn per seed (random), official, or halves (reality_check)
SELECTION: str = "validation"  # step chosen on held-out training classes, or the last one (last)
POOL: str = "other_classes"  # unlabelled images: other_classes, test_classes or labelled_classes of the data, or another data set  # fmt: skip
POOL_ROOT: str = "none"  # folder that holds that other data set; none: DATA_DIR
SET_ASIDE: float = 0.0  # of pool_classes: share of the images of every class kept for pools alone
POOL_SHARE: float = 0.0  # share of the training classes whose labels are hidden; drawn data have further species  # fmt: skip
SEEDS: list = [0, 1, 2]  # replicates, each with its own classes and initial weights
PICTURED_SEED: int = 0  # replicate whose pictures and maps are shown, one of SEEDS
TRUNK: str = "small_convnet"  # network: small_convnet, mobilenet_v2, bn_inception, googlenet or resnet50  # fmt: skip
POOLING: str = "average"  # of the trunk's last map: average, max, or average_and_max (their sum)
WEIGHTS: str = "none"  # initial weights: none (random), imagenet, or the path of a state dict
INPUT_CONVENTION: str = "torchvision"  # normalisation of inputs: torchvision, tensorflow or caffe
FREEZE_BN: bool = False  # keep the statistics of batch norms fixed
CACHED_VIEWS: int = 0  # above 0: freeze the trunk, train heads on features of so many views
IMAGE_SIZE: int = 48  # side of the images the trunk sees, pixels
CACHE_SIZE: int = 48  # side at which images are kept; test images are centre-cropped from it
SHORT_SIDE: int = 0  # above 0: crop from photographs resized to this shorter side; 0: from squares
CROP_SCALE: list = [0.5, 1.0]  # area of a random training crop, as a share of the image
EMBEDDING_DIM: int = 64  # size of an embedding, D
START: str = "given"  # where trunks start: as WEIGHTS says (given), at SWAV_CHECKPOINT (swav_checkpoint), or from there by SwAV on all images (swav)  # fmt: skip
LOSS: str = "contrastive"  # ranking loss of teacher and student: contrastive or multi_similarity
SWEEPS: list = ["components", "similarity_loss"]  # these, start, clusters, basis_start, basis_vectors, gradient, momentum, margin, variance_weight, basis_weight, mined_weight, pair_margins, warm_up, student_start, rounds, mining, labels, label_noise, pool_size, pool_balance, pool_classes  # fmt: skip
CLUSTER_SHARES: list = [0.25, 0.5, 0.75, 1.0, 1.25]  # numbers of clusters, in classes of the pool
REFERENCES: list = ["frozen_trunk", "colour_histogram", "raw_pixels", "pca", "within_class_whitening"]  # compared with, not trained  # fmt: skip
STEPS: int = 160  # optimiser steps of a teacher, and of a student
MEASURE_EVERY: int = 20  # steps between points of the learning curve
BATCH_SIZE: int = 32  # labelled images per step, and in a student as many of the pool beside them
IMAGES_PER_CLASS: int = 4  # images of each class, or cluster, in a batch
LEARNING_RATE: float = 0.001  # for trunk and head
LOSS_LR: float = 0.01  # for the feature basis
WEIGHT_DECAY: float = 0.0  # L2, for all parameters
NUM_CLUSTERS: int = 29  # of the pool, k; 0.72 of its classes, as in the paper
ROUNDS: int = 1  # times that the student becomes the next teacher
STUDENT_START: str = "teacher"  # weights a student starts from: teacher, or those its teacher started from (start)  # fmt: skip
POSITIVE_MARGIN: float = 0.0  # of contrastive: distance below which a positive pair costs nothing
NEGATIVE_MARGIN: float = 1.0  # of contrastive: distance above which a negative pair costs nothing
MINING: str = "similarity"  # pairs of the pool: by similarity, similarity_and_cluster, or cluster
MINED_WEIGHT: float = 1.0  # lambda_1, of the ranking loss of the pool
BASIS_WEIGHT: float = 0.25  # lambda_2, of what is learned about the basis
DISTRIBUTION_MARGIN: float = 0.5  # m, by how much more similar pairs within clusters should be
VARIANCE_WEIGHT: float = 1.0  # lambda_v, of the variances of similarities
MOMENTUM: float = 0.9  # beta, of the running means and variances
MOMENTUM_GRADIENT: str = "damped"  # through the running means as they stand (damped), or full
WARM_UP_STEPS: int = 20  # steps before, in which the basis alone learns
SWAV_CHECKPOINT: str = "none"  # official SwAV file that SwAV starts from; none: WEIGHTS
SWAV_STEPS: int = 80  # optimiser steps of SwAV
SWAV_BATCH_SIZE: int = 64  # images per step of SwAV
SWAV_PROTOTYPES: int = 60  # of SwAV
SWAV_WIDTH: int = 128  # hidden units of its head
SWAV_EPSILON: float = 0.05  # weight of the entropy of its assignments
SWAV_QUEUE: int = 0  # earlier images that are assigned together with a batch
SWAV_SIZES: list = [48, 32]  # sides of its crops, pixels
SWAV_COUNTS: list = [2, 2]  # crops of each size
SWAV_LR: float = 0.05  # its learning rate at the first step
RECALL_AT: list = [1, 2, 4, 8, 16, 32]  # numbers of neighbours K of Recall@K
DEVICE: str = "auto"  # auto (a GPU if there is one), cpu or cuda
PRECISION: str = "float32"  # float32, or bfloat16 for automatic mixed precision
DETERMINISTIC: bool = False  # let a GPU, too, make the same numbers twice; slower there
COMPILE: bool = False  # translate the trunk by torch.compile; for a GPU, on our CPUs it is slower
NUM_THREADS: int = 1  # CPU threads per process; results on a CPU depend on it
RESUME: bool = True  # reuse runs that the same code and parameters have finished
RESULTS_DIR: str = "results/local/mini"  # where results go, from the project root

# %%
import json
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import pandas as pd
import torch

from dmlkit.claims import judge, rung_of
from dmlkit.datasets import FAMILIES, load
from dmlkit.evaluation import evaluate
from dmlkit.features import cache_views
from dmlkit.intervals import paired_difference
from dmlkit.losses import ContrastiveLoss, MultiSimilarityLoss
from dmlkit.miners import multi_similarity_miner
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.plots import differences, set_style
from dmlkit.published import caveat, published
from dmlkit.references import OF_FEATURES, OF_PIXELS, evaluate_reference
from dmlkit.results import ChapterResults
from dmlkit.seeding import derive_seed, set_seed
from dmlkit.slade import Replicate, Settings, join
from dmlkit.swav import load_swav_checkpoint, pretrain
from dmlkit.tables import circumstances, show_claims, summarise
from dmlkit.training import Fit, choose_device
from dmlkit.transforms import RandomResizedCropFlip, RandomView, centre_crop, first_view

results = ChapterResults("06_slade_ablations", globals())
device = choose_device(DEVICE, deterministic=DETERMINISTIC)
set_style()

# %% [markdown]
# ## The data
#
# As in chapter 5: in `features` photographs of CUB-200 (Welinder et al., 2010), in `omniglot` characters of Omniglot (Lake et al., 2015). Some sweeps
# change them: fewer or wrong labels, a smaller, balanced or other pool.

# %%
read_splits = partial(
    load,
    DATASET,
    DATA_DIR,
    image_size=CACHE_SIZE,
    short_side=SHORT_SIDE,
    protocol=PROTOCOL,
    selection=SELECTION,
    pool_root=POOL_ROOT if POOL_ROOT != "none" else "",
    pool_share=POOL_SHARE,
    max_classes=MAX_CLASSES,
    max_images_per_class=MAX_IMAGES_PER_CLASS,
)
splits = read_splits(seed=PICTURED_SEED, pool=POOL)
pd.DataFrame(
    {
        name: (part.num_classes, len(part))
        for name, part in vars(splits).items()
        if part is not None
    },
    index=["classes", "images"],
)


# %%
class Data(NamedTuple):
    """What a point changes about labels and pool."""

    label_share: float = 1.0  # of the labelled images of each class
    label_noise: float = 0.0  # share of labels that are wrong
    set_aside: float = 0.0  # share of the images of every class kept for pools alone
    pool: str = POOL
    pool_share: float = 1.0  # of the pool's images
    capped: str = ""  # at most the median number of images per class (classes), or as many at random (images)  # fmt: skip


class Point(NamedTuple):
    """What one point of a sweep changes; all else is as the parameters say."""

    settings: dict = {}  # of `SETTINGS` below
    start: str = START
    pair_margins: tuple = (POSITIVE_MARGIN, NEGATIVE_MARGIN)  # of the contrastive loss
    student_start: str = STUDENT_START
    is_teacher: bool = False  # the teacher itself
    cluster_share: float = 0.0  # number of clusters as a multiple of the pool's classes; 0: given
    vectors_per_class: int = 1  # of the basis
    data: Data = Data()


def of_each_class(labels, count, generator):
    """Return which images stay if each class keeps at most so many, a number or one per class."""
    kept = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=generator)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        most = count if isinstance(count, int) else max(2, round(count * len(members)))
        kept[members[:most]] = True
    return kept


@lru_cache(maxsize=1)
def altered(seed, data):
    """Return the splits of a replicate, with fewer or wrong labels or another pool."""
    splits = read_splits(seed=seed, pool=data.pool, set_aside=data.set_aside)
    train, pool = splits.train, splits.unlabelled
    draw = torch.Generator().manual_seed(derive_seed(seed, "altered"))
    if data.label_share < 1:
        train = train.keep_images(of_each_class(train.labels, data.label_share, draw))
    if data.label_noise:
        wrong = torch.rand(len(train), generator=draw) < data.label_noise
        shift = torch.randint(1, train.num_classes, (len(train),), generator=draw)
        noisy = torch.where(wrong, (train.labels + shift) % train.num_classes, train.labels)
        train = replace(train, labels=noisy)
    if data.pool_share < 1:
        pool = pool.keep_images(torch.rand(len(pool), generator=draw) < data.pool_share)
    if data.capped:
        kept = of_each_class(pool.labels, int(pool.labels.bincount().median()), draw)
        if data.capped == "images":
            kept = kept[torch.randperm(len(kept), generator=draw)]
        pool = pool.keep_images(kept)
    return replace(splits, train=train, unlabelled=pool)


# %%
def ranking_loss(point):
    """Return the ranking loss of a point and its miner."""
    if LOSS == "multi_similarity":
        return MultiSimilarityLoss(), multi_similarity_miner
    positive, negative = point.pair_margins
    return ContrastiveLoss(positive_margin=positive, negative_margin=negative), None


SETTINGS = Settings(
    steps=STEPS,
    batch_size=BATCH_SIZE,
    images_per_class=IMAGES_PER_CLASS,
    learning_rate=LEARNING_RATE,
    loss_rate=LOSS_LR,
    weight_decay=WEIGHT_DECAY,
    num_clusters=NUM_CLUSTERS,
    rounds=ROUNDS,
    warm_up_steps=WARM_UP_STEPS,
    mining=MINING,
    mined_weight=MINED_WEIGHT,
    basis_weight=BASIS_WEIGHT,
    margin=DISTRIBUTION_MARGIN,
    variance_weight=VARIANCE_WEIGHT,
    momentum=MOMENTUM,
    gradient=MOMENTUM_GRADIENT,
)
freeze = partial(cache_views, image_size=IMAGE_SIZE, scale=CROP_SCALE, device=device)
random_view = (
    RandomView if CACHED_VIEWS else partial(RandomResizedCropFlip, IMAGE_SIZE, scale=CROP_SCALE)
)
plain_view = first_view if CACHED_VIEWS else partial(centre_crop, image_size=IMAGE_SIZE)
ranks = tuple({1, *RECALL_AT})
measure = partial(evaluate, transform=plain_view, device=device, ks=ranks)


# %% [markdown]
# ## Stages, as in chapter 5


# %%
def new_trunk(start="given"):
    """Return the trunk as it is before anything is trained, on the device."""
    trunk = make_trunk(
        TRUNK,
        weights=WEIGHTS,
        convention=INPUT_CONVENTION,
        freeze_batch_norm=FREEZE_BN,
        pooling=POOLING,
        compiled=COMPILE,
    )
    if start != "given" and SWAV_CHECKPOINT != "none":
        load_swav_checkpoint(trunk, SWAV_CHECKPOINT)
    return trunk.to(device)


def swav(seed, data):
    """Return the stage of a trunk that learned by SwAV from labelled and unlabelled images."""
    splits = altered(seed, data)

    def make():
        set_seed(seed, num_threads=NUM_THREADS)
        return pretrain(
            new_trunk("swav"),
            join(splits.train, splits.unlabelled),
            crop_sizes=SWAV_SIZES,
            crop_counts=SWAV_COUNTS,
            hidden_features=SWAV_WIDTH,
            embedding_dim=EMBEDDING_DIM,
            num_prototypes=SWAV_PROTOTYPES,
            epsilon=SWAV_EPSILON,
            queue_size=SWAV_QUEUE,
            queue_start=SWAV_STEPS // 10,
            steps=SWAV_STEPS,
            batch_size=SWAV_BATCH_SIZE,
            learning_rate=SWAV_LR,
            measure_every=MEASURE_EVERY,
            seed=seed,
            device=device,
            precision=PRECISION,
        )

    return results.stage("swav", seed, splits.fingerprint, make, data=list(data))


@lru_cache(maxsize=1)
def started(start, data, seed):
    """Return where all teachers and students that start like this and see such data begin."""
    set_seed(seed, num_threads=NUM_THREADS)
    trunk = new_trunk(start)
    if start == "swav":
        trunk.load_state_dict(swav(seed, data)["trunk"])
    splits, trunk = freeze(altered(seed, data), trunk, views=CACHED_VIEWS)
    set_seed(derive_seed(seed, "head"), num_threads=NUM_THREADS)
    return Replicate(
        splits,
        EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, EMBEDDING_DIM)).to(device),
        random_view,
        plain_view,
        lambda model, part: measure(model, part).metrics,
        seed,
        {"measure_every": MEASURE_EVERY, "precision": PRECISION},
    )


def made_by(point, replicate, fingerprint):
    """Return the teacher or the student of a point."""
    loss, miner = ranking_loss(point)
    teach = partial(replicate.teach, loss, SETTINGS, miner=miner)
    of_labels = point.data if point.start == "swav" else point.data[:3]  # not the pool
    known = {"start": point.start, "data": list(of_labels), "pair_margins": point.pair_margins}
    teacher = results.stage("teacher", replicate.seed, fingerprint, teach, **known)
    if point.is_teacher:
        return teacher
    splits, settings = replicate.splits, replace(SETTINGS, **point.settings)
    if point.cluster_share:
        count = max(2, round(point.cluster_share * splits.unlabelled.num_classes))
        settings = replace(settings, num_clusters=count)
    vectors = point.vectors_per_class * splits.train.num_classes
    return replicate.learn(
        teacher,
        loss,
        replace(settings, basis_vectors=vectors),
        miner=miner,
        from_start=point.student_start == "start",
    )


# %% [markdown]
# ## The sweeps

# %%
sweeps = {
    "start": {
        start: Point(start=start)
        for start in ("given", "swav_checkpoint", "swav")
        if start != "swav_checkpoint" or SWAV_CHECKPOINT != "none"
    },
    "components": {
        "teacher": Point(is_teacher=True),
        "labels_and_basis": Point({"mined_weight": 0.0, "comparison": "none", "mining": "cluster"}),
        "pseudo_labels": Point({"basis_weight": 0.0, "mining": "cluster", "warm_up_steps": 0}),
        "basis": Point({"mining": "cluster"}),
        "basis_and_mining": Point(),
    },
    "similarity_loss": {
        "distribution": Point(),
        "distribution_full": Point({"gradient": "full"}),
        "none": Point({"comparison": "none"}),
        "local_cross_entropy": Point({"comparison": "local_cross_entropy"}),
        "global_cross_entropy": Point({"comparison": "global_cross_entropy"}),
    },
    "clusters": {share: Point(cluster_share=share) for share in CLUSTER_SHARES},
    "basis_start": {name: Point({"basis_start": name}) for name in ("random", "class_means")},
    "basis_vectors": {n: Point(vectors_per_class=n) for n in (1, 2, 4)},
    "gradient": {name: Point({"gradient": name}) for name in ("damped", "full")},
    "momentum": {m: Point({"momentum": m}) for m in (0.9, 0.99, 0.5)},
    "margin": {m: Point({"gradient": "full", "margin": m}) for m in (0.5, 0.25, 0.1)},
    "variance_weight": {
        w: Point({"gradient": "full", "variance_weight": w}) for w in (1.0, 0.0, 0.3, 3.0)
    },
    "basis_weight": {w: Point({"basis_weight": w}) for w in (0.25, 0.05, 1.0)},
    "mined_weight": {w: Point({"mined_weight": w}) for w in (1.0, 0.0, 0.3, 3.0)},
    "pair_margins": {
        f"{low}_and_{high}": Point(pair_margins=(low, high))
        for low, high in ((0.0, 1.0), (0.0, 0.5), (0.3, 0.8))
    },
    "warm_up": {n: Point({"warm_up_steps": n}) for n in (0, WARM_UP_STEPS, 4 * WARM_UP_STEPS)},
    "student_start": {name: Point(student_start=name) for name in ("teacher", "start")},
    "rounds": {count: Point({"rounds": count}) for count in (1, 2, 3)},
    "mining": {
        name: Point({"mining": name})
        for name in ("similarity", "similarity_and_cluster", "cluster")
    },
    "labels": {share: Point(data=Data(label_share=share)) for share in (0.25, 0.5, 1.0)},
    "label_noise": {share: Point(data=Data(label_noise=share)) for share in (0.0, 0.1, 0.3)},
    "pool_size": {share: Point(data=Data(pool_share=share)) for share in (0.25, 0.5, 1.0)},
    "pool_balance": {
        "unbalanced": Point(data=Data(capped="images")),
        "nearly_balanced": Point(data=Data(capped="classes")),
    },
    "pool_classes": {
        pool: Point(data=Data(pool=pool, set_aside=SET_ASIDE))
        for pool in ("other_classes", "test_classes", "labelled_classes")
    },
}
own_teacher = ("labels", "label_noise", "pair_margins")  # whose teachers differ, too
for name, given, choices in (
    ("SWEEPS", SWEEPS, sweeps),
    ("START", [START], ("given", "swav_checkpoint", "swav")),
    ("LOSS", [LOSS], ("contrastive", "multi_similarity")),
    ("STUDENT_START", [STUDENT_START], ("teacher", "start")),
    ("REFERENCES", REFERENCES, OF_PIXELS + OF_FEATURES),
):
    if unknown := set(given) - set(choices):
        raise ValueError(f"{name}: there is no {min(unknown)}; choose from {', '.join(choices)}")
if "pair_margins" in SWEEPS and LOSS != "contrastive":
    raise ValueError(f"LOSS={LOSS} has no pair_margins; leave them out of SWEEPS")
starts = [START, *(sweeps["start"] if "start" in SWEEPS else ())]
if "swav_checkpoint" in starts and SWAV_CHECKPOINT == "none":
    raise ValueError("START=swav_checkpoint; set SWAV_CHECKPOINT to the file it starts from")
if "swav" in starts and CACHED_VIEWS:
    raise ValueError("SwAV trains the trunk, which CACHED_VIEWS freezes; leave it out here")
if POOL == "none":
    raise ValueError("POOL=none leaves nothing to learn from; choose a pool")
counts = [NUM_CLUSTERS]
if "clusters" in SWEEPS:
    counts += [max(2, round(share * splits.unlabelled.num_classes)) for share in CLUSTER_SHARES]
if min(splits.train.num_classes, *counts) < BATCH_SIZE // IMAGES_PER_CLASS:
    raise ValueError(
        f"BATCH_SIZE={BATCH_SIZE}: batches of {BATCH_SIZE // IMAGES_PER_CLASS} classes are drawn from "
        f"{splits.train.num_classes} labelled ones, and from {min(counts)} clusters or more; use less"
    )
if len(splits.unlabelled) < NUM_CLUSTERS:
    raise ValueError(
        f"NUM_CLUSTERS={NUM_CLUSTERS} are more than a pool of {len(splits.unlabelled)} images has; "
        "use fewer"
    )


# %% [markdown]
# What no sweep changes is one row, whichever sweeps it is a point of: `teacher` and `student`.


# %%
def name_of(sweep, value, *, is_teacher=False):
    """Return the name of the rows of a point, or of its teacher."""
    point = sweeps[sweep][value]
    point = point._replace(
        settings={k: v for k, v in point.settings.items() if getattr(SETTINGS, k) != v},
        is_teacher=point.is_teacher or is_teacher,
    )
    if point in (Point(), Point(is_teacher=True)):
        return "teacher" if point.is_teacher else "student"
    return f"{sweep}_{value}{'_teacher' * is_teacher}"


trained = {"teacher": Point(is_teacher=True), "student": Point()}
for sweep in SWEEPS:
    for value, point in sweeps[sweep].items():
        if sweep in own_teacher:
            trained[name_of(sweep, value, is_teacher=True)] = point._replace(is_teacher=True)
        trained[name_of(sweep, value)] = point


def refer(name, seed):
    """Return the test results of one reference on one replicate."""
    set_seed(seed, num_threads=NUM_THREADS)
    splits = altered(seed, Data())
    frozen, _ = freeze(splits, new_trunk(), views=max(1, CACHED_VIEWS))
    return evaluate_reference(name, splits, frozen, embedding_dim=EMBEDDING_DIM, ks=ranks)


def tested(point, seed):
    """Return test results at the chosen and the last step (None if the same), and the fit."""
    replicate = started(point.start, point.data, seed)
    test, gallery = replicate.splits.test, replicate.splits.gallery
    made = made_by(point, replicate, altered(seed, point.data).fingerprint)
    end = made["history"][-1]
    states = ["chosen"] if made["best_step"] == end["step"] else ["chosen", "last"]
    found = [measure(replicate.new_model(made[at]), test, gallery=gallery) for at in states]
    for rounds in made["pseudo_labels"][-1:]:
        found[0].of_the_set.update({f"pseudo_{name}": x for name, x in rounds.items()})
    found.append(None)
    return *found[:2], Fit([end], made["best_step"], [], made["seconds"])  # no curves are shown


def known(point):
    """Return all that determines a point, for its row."""
    settings = vars(replace(SETTINGS, **point.settings)) | point._asdict()
    settings |= {"data": list(point.data)}
    return {f"point_{name}": value for name, value in settings.items() if name != "settings"}


# %% [markdown]
# ## All runs

# %% tags=["runs"]
for start in {point.start for point in trained.values()}:
    new_trunk(start)  # a checkpoint that is missing or does not fit is refused now
runs = {}
for seed in SEEDS:
    splits = altered(seed, Data())
    fingerprint, names = splits.fingerprint, splits.test.class_names
    for reference in REFERENCES:
        run = runs[reference, seed] = results.run(reference, seed, fingerprint)
        if not results.is_finished(run):
            results.save(run, names, refer(reference, seed))
    equal = {}  # points of several sweeps that are the same, trained once
    for method, point in trained.items():
        runs[method, seed] = results.run(method, seed, fingerprint, **known(point))
        if not results.is_finished(runs[method, seed]):
            equal.setdefault(json.dumps(known(point)), []).append(method)
    for methods in equal.values():
        with results.attempt(runs[methods[0], seed]):
            found = tested(trained[methods[0]], seed)
            for method in methods:
                results.save(runs[method, seed], names, *found)
results.complete()

# %% [markdown]
# ## What matters
#
# Percent on test classes; each point against the first line of its sweep (where the teacher changes, too, in *labels*, *label_noise* and
# *pair_margins*, each student against its own), in points of MAP@R with the 95 % interval over replicates and classes. *AMI* (Vinh et al., 2010) is
# that of the pseudo labels with the pool's true ones. First the references, which no sweep changes:

# %%
if PICTURED_SEED not in SEEDS:
    raise ValueError(f"PICTURED_SEED={PICTURED_SEED} is not one of SEEDS={SEEDS}; set it to one")
rows = results.load(list(runs.values()))
by_class = {run.run_id: results.by_class(run.run_id) for run in runs.values()}
of_method = {
    method: [by_class[run_id] for run_id in group.sort_values("seed")["run_id"]]
    for method, group in rows.groupby("method")
}
results.save_table("references", summarise(rows, by_class, REFERENCES), circumstances(rows))

# %% [markdown]
# All sweeps of the profile in one picture, before their tables one by one. A panel is a sweep and a line a point of it: a dot for the difference, a
# bar for its interval, and a vertical line at zero, which stands for the first point of the sweep (in *labels*, *label_noise* and *pair_margins* for
# the point's own teacher). Right of zero is better. Which intervals leave zero out?


# %% mystnb={"image": {"alt": "Differences of MAP at R between each point and the first of its sweep, as points with intervals beside a line at zero."}}
def change(method, base):
    """Return mean and interval of a difference of MAP@R, in points of percent."""
    if len(SEEDS) < 2:  # no interval
        means = rows.groupby("method")["metric_map_at_r"].mean()
        return [100 * (means[method] - means[base]), float("nan"), float("nan")]
    found = paired_difference(of_method[method], of_method[base], "map_at_r")
    return [100 * value for value in (found.mean, *found.interval())]


def lines_of(sweep):
    """Return the lines of a sweep's table: how each is called, its rows, and those of its base."""
    values, own = sweeps[sweep], sweep in own_teacher
    first = name_of(sweep, next(iter(values)))
    lines = []
    for value in values:
        name, teacher = name_of(sweep, value), name_of(sweep, value, is_teacher=own)
        lines += [(f"{value}, teacher", teacher, teacher)] * own
        lines.append((str(value), name, teacher if own else first))
    return lines


def table_of(sweep):
    """Return the table of a sweep."""
    called, names, bases = zip(*lines_of(sweep), strict=True)
    table = summarise(
        rows, by_class, list(names), intervals=("recall_at_1", "r_precision", "map_at_r")
    )
    said = []
    for name, base in zip(names, bases, strict=True):
        mean, low, high = change(name, base)
        span = "" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]"
        said.append("" if name == base else f"{mean:+.1f}{span}")
    table.insert(3, "MAP@R, change", said)
    quality = {"ami": "AMI of the pool"}
    if sweep == "clusters":
        quality = {"clusters": "k", "purity": "purity", "nmi": "NMI"} | quality
    for place, (metric, title) in enumerate(quality.items(), start=4):
        means = rows.groupby("method")[f"metric_pseudo_{metric}"].mean().reindex(list(names))
        table.insert(place, title, ["" if pd.isna(x) else f"{x:.3g}" for x in means])
    return table.set_axis(pd.Index(called, name=sweep))


def show(sweep):
    """Save and return the table of a sweep, if it is in the profile."""
    if sweep not in SWEEPS:
        return f"Not in this profile: add {sweep} to SWEEPS."
    return results.save_table(sweep, table_of(sweep))


def published_part(part):
    """Save and return the published numbers of one ablation."""
    note = caveat("06_slade_ablations", DATASET, part)
    table = published("06_slade_ablations", DATASET, part)
    return results.save_table(f"published_{part}", table, note, of_data=False)


changes = {}
for sweep in SWEEPS:
    for called, name, base in lines_of(sweep):
        if name != base:
            changes[sweep, called] = change(name, base)
changes = pd.DataFrame(changes, index=["mean", "low", "high"]).T
if len(changes):
    results.save_figure(
        "changes", differences(changes, "MAP@R, points, against the first (or the own teacher)")
    )

# %% [markdown]
# In `features` most intervals are narrow and many leave zero out. The student with mining is far left of its teacher (*components*, and again
# *pair_margins*, *labels* and *label_noise*), and furthest right of that student is what takes mining away or weakens it: pairs by clusters alone
# (*mining*), smaller weights (*mined_weight*), a larger weight of the basis. In `omniglot`, too, mining alone is left of zero in *components*. In
# `mini` and `butterflies` nearly all intervals cross zero. (Of so many intervals some leave zero out by chance; what was claimed beforehand is judged
# below.)
#
# ## Where the teacher starts
#
# The paper: ImageNet's labels, SwAV as it comes, and SwAV that learned on from the images at hand.

# %%
show("start")

# %% [markdown]
# How SwAV ended on each replicate. A loss of $\ln K$ (relative loss 1) is an even guess among its $K$ prototypes: it has then learned nothing, and a start from it is a start from wherever SwAV began ([chapter 5](05_slade.ipynb) has the curves).

# %%
shown = "Not in this profile: no trunk starts from SwAV."
if "swav" in starts:
    ends = {seed: swav(seed, Data())["history"][-1] for seed in SEEDS}
    names = ["step", "loss", "relative_loss", "prototypes_used", "usage_entropy"]
    ends = pd.DataFrame(ends).T.rename_axis("replicate")[names].astype({"step": int})
    shown = results.save_table("swav", ends.round(3))
shown

# %%
published_part("teacher")

# %% [markdown]
# ## Components
#
# Teacher; a student that learns labels and basis alone, from no pool; one that takes all pairs of the pseudo labels at their word; with the feature basis beside; and with mining, the whole. The first of these is ours: the basis learns the labels by a classifier, which might help without a pool.

# %%
show("components")

# %%
published_part("components")

# %% [markdown]
# ## How similarities are compared
#
# The similarity distribution loss, and our reading of the two that the paper compares it with: their definitions were not found.

# %%
show("similarity_loss")

# %%
published_part("similarity_loss")

# %% [markdown]
# ## Number of clusters
#
# Relative to the number of classes that the pool has, which nobody would know. The paper's 100 to 500 on NABirds (Van Horn et al., 2015), which has
# 555 classes, are 0.18 to 0.9.

# %%
show("clusters")

# %%
published_part("clusters")

# %% [markdown]
# ## What the paper leaves open
#
# * *basis_start*: random vectors, or the mean embeddings of the labelled classes; *basis_vectors*: as multiples of the number of labelled classes. Those beyond it are never the right class; they only widen the description in which pairs are compared.
# * *gradient*: as the equation stands (*damped*), the similarity distribution loss has only $1 - \beta$ of its batch's own gradient. Its *margin* and *variance_weight* are therefore changed with the full one; while the hinge acts its gradient does not depend on the margin. *momentum* $\beta$ also says how far the thresholds of mining lag behind (chapter 5).
# * *basis_weight*, *mined_weight*: the lambdas; *pair_margins*: distances below and above which the contrastive loss
#   (Hadsell, Chopra and LeCun, 2006) is content; *warm_up*: steps in which the basis alone learns.
# * *student_start*: at its teacher's weights, or where the teacher started, which is half the training; *rounds*: each trains as long as the first, so more of them are more steps, too.
# * *mining*: by similarity; only those pairs that clusters agree with; or all that clusters say.

# %%
OPEN = (
    *("basis_start", "basis_vectors", "gradient", "momentum", "margin", "variance_weight"),
    *("basis_weight", "mined_weight", "pair_margins", "warm_up", "student_start", "rounds"),
    "mining",
)
shown = "Not in this profile: add to SWEEPS."
if of_open := [sweep for sweep in OPEN if sweep in SWEEPS]:
    shown = pd.concat({sweep: table_of(sweep) for sweep in of_open}, names=["choice", "value"])
    shown = results.save_table("choices", shown)
shown

# %% [markdown]
# ## How many labels does it take?
#
# Teacher and student with a share of the labelled images of each class: is the student worth more where labels are few?

# %%
show("labels")

# %% [markdown]
# ## Wrong labels
#
# A share of the labelled images has the label of another class.

# %%
show("label_noise")

# %% [markdown]
# ## How large a pool
#
# Shares of the pool, drawn at random.

# %%
show("pool_size")

# %% [markdown]
# ## A balanced pool
#
# As many images as the median class has of each class that has so many (which takes labels that nobody has), against as many images drawn at random.

# %%
show("pool_balance")

# %% [markdown]
# ## Whose classes
#
# A pool of other classes; of test classes (as many, so not all of them), which is a leak; and of the labelled classes, further images without their labels. (Photographs need `SET_ASIDE` for that: half of the images of every class are then kept for pools, in training and test classes alike. Test classes are smaller, so this table compares with itself alone.)

# %%
show("pool_classes")

# %% [markdown]
# ## Claims
#
# Read as in chapter 2; listed before the runs ([`claims.csv`](claims.csv)).

# %%
rung = rung_of(DATASET, WEIGHTS, CACHED_VIEWS, is_subset=bool(results.stamp))
overlap = splits.test.num_classes / splits.train.num_classes  # in random splits
if PROTOCOL != "random" or DATASET in FAMILIES:
    overlap = 0.0
claims = judge("06_slade_ablations", rung, rows, by_class, overlap=overlap)
show_claims(results.save_claims(claims))

# %% [markdown]
# ## What this shows, and what not
#
# **Photographs above a frozen trunk (`features`, ten splits).** The components, one after the other: pseudo labels +0.2 points of MAP@R, the basis +0.1 more (D3a not resolved; the paper +1.6), mining -6.4 (D3b reversed; the paper +1.1). Why mining hurts here is told in chapter 5, with its default settings, which this chapter keeps. Everything else in this chapter is measured on a student that mining has harmed, and what softens the harm looks like a gain:
# a smaller weight of mined pairs (0.3: +5.0 points, none: +5.8), a larger one of the basis (1.0: +4.3), a longer warm-up (200 steps instead of 50: +2.3), thresholds that follow faster (momentum 0.5: +1.8), pairs that clusters agree with (+1.8), starting from class means (+1.2). Both cross-entropies of pairs beat the similarity distribution loss as the equation stands
# (Local-CE by 2.4, D4a reversed; Global-CE by 1.8, not resolved), and so does learning nothing from similarities (+1.0); with the full gradient it gains 1.6. More rounds lose more.
#
# **Is that the settings, too?** Chapter 5's search took its student's loss away with a quarter of the learning rate, fewer steps and less weight on mined pairs. So the first two sweeps were run once more, all else equal, with teacher and student at 0.00007 in place of 0.0003 (ten splits; rows and tables in `results/features/lower_rate`). The teacher is better for it (19.5 instead of
# 18.4 MAP@R), pseudo labels gain more (+0.6), the basis still nothing (-0.1, now *equivalent* to none), and mining costs half as much: -3.1 points (D3b, t interval -4.7 to -1.4, reversed again). The similarity distribution loss stays behind Local-CE (-1.4, D4a reversed again) and Global-CE (-1.0). So both reversals hold at two learning rates; their size is the setting's.
# On the official split (three seeds, the same two sweeps with default settings, rows in `results/features/official`) the order is the same: basis 12.1 points and teacher 12.0, mining 5.0 below the basis, the similarity distribution loss 2.6 behind Local-CE and 1.9 behind Global-CE.
#
# **What a practitioner asks**, with the same caution: with a quarter of the labels the student loses less against its own, weaker teacher (-4.3 against -6.1), and so with 30 % wrong labels (-4.7; the student is even 0.9 points better than with right ones, its teacher 0.4 worse), yet it never gains.
# More of the pool does not help (the whole against a quarter of it: -0.4), and whose classes it holds shows no difference that ten splits resolve (test classes -0.4, D6b not resolved). A quarter as many clusters as classes is 0.7 points worse than three quarters (D5a not resolved); as many as classes are 0.1 below three quarters (equivalence, D5b, not resolved);
# AMI of the pseudo labels is highest at three quarters.
#
# **Photographs, a whole network fine-tuned (`birds`, four splits).** Up to the basis the means go the paper's way, by a sixth of its steps and none of them resolved: pseudo labels +0.2 points of MAP@R over the teacher (95 % interval -0.9 to +1.3; the paper +1.5), the basis +0.3 on top (D3a; -0.1 to +0.6; the paper +1.6); labels and basis without any pool +0.1. Mining leaves 2.2 of 15.5 points
# (D3b: -13.3, t interval -21.2 to -5.3; p .013, after Holm's correction .09, not resolved). Nearly all pairs are mined as positive (chapter 5), and how many goes with the momentum: 0.99 in place of 0.9 leaves 1.0 points, 0.5 9.5 (+7.3, 2.7 to 11.8), partly because its thresholds lag less and partly because it damps the similarity distribution loss less (chapter 5 tells these apart). On frozen features momentum 0.5 gained two points.
#
# **Characters, from scratch (`omniglot`, three splits of alphabets).** The same picture, without claims of its own: labels and basis without any pool gain most over the teacher (+3.8 points of MAP@R, 2.8 to 4.8), the pool's clusters add nothing to that (with basis +2.6, without +2.1), and mining ends 6.1 below the teacher (5.1 to 7.2); it takes nearly all pairs for positive, which with momentum 0 it does not, and then loses half as much (chapter 5). Neither the
# number of clusters, nor whose classes the pool holds makes a difference that three splits resolve. SwAV ended at $\ln K$ in all three, and a start from it differs by 0.2 points.
#
# **Drawn birds (`mini`).** A demonstration. The largest gain is that of labels and basis without any pool (+4.8 points, [-2.5, +12.1]), a control that the paper lacks. Three replicates resolve none of these differences. On drawn `butterflies` it is again labels and basis without a pool that gain most (+3.4).
#
# **Not made yet.** On `birds` all sweeps but two; `paper`, and with it the official SwAV weights as a start (D2c); on drawn birds all sweeps but two; the balance of the pool on photographs, whose classes are of nearly one size here.
#
# **Try this.** Set `MINED_WEIGHT = 0.3` and run the sweeps again: is the similarity distribution loss still worse than none? Set `SWEEPS = ["labels", "label_noise"]` with `MINING = "cluster"`: from how many labels on is a pool worth it?
