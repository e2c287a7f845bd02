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
# # 3. NormSoftmax: classification as a strong baseline
#
# > Zhai and Wu, *Classification is a Strong Baseline for Deep Metric Learning*, BMVC 2019,
# > [arXiv:1811.12649](https://arxiv.org/abs/1811.12649), and the authors' code,
# > [azgo14/classification_metric_learning](https://github.com/azgo14/classification_metric_learning).
#
# Metric learning has its own losses, of pairs and triplets, because the classes of a test are not those of training: what
# use is a classifier whose classes are gone? A plain one is enough, answers the paper (Zhai and Wu, 2019), if it is normalised: the last
# layer compares an embedding with one vector per class by their angle, and the vectors are thrown away after training.
#
# **Claims.** Such a classifier is not worse than losses of pairs; the paper also compares it with a classifier with a margin, CosFace
# (Wang et al., 2018). Layer normalisation (Ba, Kiros and Hinton, 2016) before the embedding makes training faster and better. Batches of several
# images of each class are better than random ones, up to a point. Recall grows with the dimension, and one bit per dimension then loses little. A
# step may look at a random part of the classes only.
#
# **What this chapter checks.** Each of these, with claims listed before the runs; and two things for which we found no
# published numbers: the temperature, and how many classes a step may leave out. The size of each effect stands beside the
# published one, on classes nobody trained on.
#
# | | the paper and its code | here |
# |---|---|---|
# | data | CUB-200-2011 (Wah et al., 2011), Cars-196 (Krause et al., 2013), SOP (Song et al., 2016), In-Shop (Liu et al., 2016) | the profile's |
# | trunk | GoogLeNet (Szegedy et al., 2015), BN-Inception (Ioffe and Szegedy, 2015), ResNet-50 (He et al., 2016) | the profile's; torchvision's GoogLeNet has batch norms |
# | recipe | known for ResNet-50 at 2,048 dimensions; for others unknown | in `paper` the same for all |
# | precision | float32 | float32; in `paper` bfloat16 |
# | k-means for NMI | 10 restarts of 300 iterations | 5 restarts of 20 |
# | test classes | the second half | redrawn for each replicate; in `paper` the second half |
# | image | squeezed to 256 x 256, a random square of 224, mirrored | the same where `RANDOM_CROP = "square"`; else a random part, resized |
# | projection | only where the size differs from the trunk's | always, or the same where `PROJECT_ALWAYS = False` |
# | layer norm | before the projection, without learned scale and shift | the same, **for all losses of this chapter** (chapter 2: for none) |
# | optimiser | SGD with momentum 0.9, weight decay 0.0001, a tenth of the rate after half the steps | Adam (Kingma and Ba, 2015), or the same in `paper` |
# | warm-up | one epoch in which only new parameters learn (batch norms follow the data) | none, or the same in `paper` |
# | batch | 75 images, 25 of each class (SOP and In-Shop: 5), drawn with replacement | 4 of each class, with replacement only where a class has fewer; in `paper` the same numbers |
# | batch norm | trained | frozen where the weights have it folded (`features`, `birds`) |
# | step | unknown | chosen on held-out classes, or the last |
# | bits | component above 0; ties as the search library breaks them | the same; expectation over the order of ties |
# | images per class | 1, 3, 12, 25, 37, 75 of 75 (12 and 37 with smaller batches), at 512 dimensions | in `paper` 1, 3, 15, 25, 75, at 2048 |
# | CosFace | unknown | starts at NormSoftmax's temperature (scale 20; its paper on faces: 64), so that the margin is what differs; a search may change both |
# | class subsampling | we found no numbers; absent from the code | a subset with the batch's classes, drawn anew each step |

# %% tags=["parameters"]
DATASET: str = "aviary"  # images: aviary or butterflies (drawn), or one that `dmlkit data` lists
DATA_DIR: str = "data"  # folder that holds real data sets, from the project root
MAX_CLASSES: int = 0  # use only the first classes, for a quick look (half of them test); 0: all
MAX_IMAGES_PER_CLASS: int = 0  # use only the first images of each class; 0: all
PROTOCOL: str = "random"  # classes: redrawn per seed (random), official, or halves (reality_check)
SELECTION: str = "validation"  # step chosen on held-out training classes, or the last one (last)
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
RANDOM_CROP: str = "resized"  # a random part of area CROP_SCALE, resized; or a square of IMAGE_SIZE
CROP_SCALE: list = [0.5, 1.0]  # area of a random training crop, as a share of the image
EMBEDDING_DIM: int = 64  # size of an embedding, D
PROJECT_ALWAYS: bool = True  # have a projection also where D is the number of features
METHODS: list = ["multi_similarity", "proxy_anchor", "cos_face", "norm_softmax"]  # losses: these or contrastive  # fmt: skip
SWEEPS: list = ["temperature"]  # layer_norm of all losses; of NormSoftmax images_per_class, temperature, dimension, trunk, class_share, class_share_corrected  # fmt: skip
TEMPERATURES: list = [0.0125, 0.05, 0.2]  # of the sweep of temperature
DIMENSIONS: list = [8, 16, 32]  # of the sweeps of dimension and trunk, up to the number of features
IMAGES_PER_CLASS_TRIED: list = [0, 2, 4, 16, 64]  # of its sweep; 0: random batches
CLASS_SHARES: list = [0.5, 0.75, 1.0]  # of the training classes in the softmax of a step
OTHER_TRUNKS: list = ["mobilenet_v2 none torchvision"]  # of the sweep of trunk: name, weights, input convention  # fmt: skip
REFERENCES: list = ["frozen_trunk", "colour_histogram", "raw_pixels", "pca", "within_class_whitening"]  # compared with, not trained  # fmt: skip
STEPS: int = 160  # optimiser steps per run
MEASURE_EVERY: int = 20  # steps between points of the learning curve
BATCH_SIZE: int = 64  # images per step
IMAGES_PER_CLASS: int = 4  # images of each class in a batch
OPTIMIZER: str = "adam"  # adam, or sgd with momentum 0.9
LEARNING_RATE: float = 0.001  # for trunk and head
LOSS_LR: float = 0.01  # for parameters of the loss (class weights)
WEIGHT_DECAY: float = 0.0  # L2, for all parameters
DECAY_EVERY: int = 0  # above 0: a tenth of all learning rates after so many steps, again and again
WARM_UP_STEPS: int = 0  # first steps in which the trunk does not learn
SEARCH_TRIALS: int = 0  # settings tried per method and replicate, defaults included; 0: defaults
SEARCH_FOLDS: int = 2  # folds of the training classes that judge each trial, 1 to 4
STEP_CLASSES: list = [11318, 100000]  # numbers of classes a step is timed for; 10^6 need 14 GB
SEARCHED_ITEMS: int = 20000  # size of the index whose search is timed
RECALL_AT: list = [1, 2, 4, 8, 16, 32]  # numbers of neighbours K of Recall@K
DEVICE: str = "auto"  # auto (a GPU if there is one), cpu or cuda
PRECISION: str = "float32"  # float32, or bfloat16 for automatic mixed precision
DETERMINISTIC: bool = False  # let a GPU, too, make the same numbers twice; slower there
COMPILE: bool = False  # translate the trunk by torch.compile; for a GPU, on our CPUs it is slower
NUM_THREADS: int = 1  # CPU threads per process; results on a CPU depend on it
RESUME: bool = True  # reuse runs that the same code and parameters have finished
RESULTS_DIR: str = "results/local/mini"  # where results go, from the project root

# %%
import time
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from scipy.stats import loguniform
from torch.nn.functional import normalize
from torch.optim import SGD, Adam

from dmlkit.batches import image_batches
from dmlkit.claims import judge, rung_of
from dmlkit.datasets import FAMILIES, PICTURES_MAY_BE_SHOWN, load
from dmlkit.evaluation import Evaluation, embed, evaluate, evaluate_embeddings
from dmlkit.features import cache_views
from dmlkit.losses import (
    ContrastiveLoss,
    CosFaceLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    ProxyAnchorLoss,
    SampledNormSoftmaxLoss,
    hyperparameters,
)
from dmlkit.metrics import binarise, clustering_metrics, code_metrics
from dmlkit.miners import multi_similarity_miner
from dmlkit.models import TRUNKS, EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.plots import (
    embedding_maps,
    learning_curves,
    nearest_neighbours,
    set_style,
    spread_queries,
    sweep_curves,
)
from dmlkit.processes import of_all
from dmlkit.published import TITLES, beside, caveat, published
from dmlkit.references import OF_FEATURES, OF_PIXELS, evaluate_reference
from dmlkit.results import ChapterResults
from dmlkit.samplers import MPerClassSampler, RandomSampler
from dmlkit.search import best_of, between, check_search, draw_settings, run_trial
from dmlkit.seeding import derive_seed, set_seed
from dmlkit.tables import circumstances, show_claims, steps_to, summarise, sweep_table
from dmlkit.training import choose_device, fit
from dmlkit.transforms import (
    RandomCropFlip,
    RandomResizedCropFlip,
    RandomView,
    centre_crop,
    first_view,
)

results = ChapterResults("03_norm_softmax", globals())
device = choose_device(DEVICE, deterministic=DETERMINISTIC)
set_style()

# %% [markdown]
# ## The data
#
# As in [chapter 2](02_baseline_losses.ipynb): each replicate draws its own training and test classes, and with
# `SELECTION = "validation"` a fifth of the training classes is held out to choose the step at which training stops. The photographs of `features` and
# `birds` are those of CUB-200 (Welinder et al., 2010), the characters of `omniglot` those of Omniglot (Lake et al., 2015).

# %%
read_splits = partial(
    load,
    DATASET,
    DATA_DIR,
    image_size=CACHE_SIZE,
    short_side=SHORT_SIDE,
    protocol=PROTOCOL,
    selection=SELECTION,
    max_classes=MAX_CLASSES,
    max_images_per_class=MAX_IMAGES_PER_CLASS,
)
load_splits = lru_cache(maxsize=1)(read_splits)  # all methods of a replicate share its splits
splits = load_splits(seed=PICTURED_SEED)
pd.DataFrame(
    {
        name: (part.num_classes, len(part))
        for name, part in vars(splits).items()
        if part is not None
    },
    index=["classes", "images"],
)

# %% [markdown]
# ## The method
#
# The trunk's features $f$ of an image are normalised to mean 0 and variance 1 over their $F$ components (layer norm, nothing
# learned), mapped by a matrix $W$ without bias to $D$ dimensions, and brought to unit length:
#
# $$x = \frac{W \operatorname{LN}(f)}{\lVert W \operatorname{LN}(f) \rVert} \,.$$
#
# Each of the $C$ training classes owns a learned vector $p_c$, of unit length too. The loss is the cross-entropy of a softmax
# over cosines, at temperature $\sigma$:
#
# $$\ell = -\frac{1}{B} \sum_i \log \frac{e^{x_i^\top p_{y_i} / \sigma}}{\sum_{c} e^{x_i^\top p_c / \sigma}} \,.$$
#
# Cosines lie between -1 and 1. At $\sigma = 1$ even a perfect embedding would give the right class hardly more weight than
# the others; at $\sigma = 0.05$ the
# exponents span 40. The smaller $\sigma$, the more the gradient comes from the nearest wrong classes alone. Below, the
# probability of its own class for an image that is placed perfectly (cosine 1 to its class, 0 to all others): where it stays
# below 1, the loss and its gradient never vanish.

# %%
if min(TEMPERATURES) <= 0:
    raise ValueError(f"TEMPERATURES: {min(TEMPERATURES)} should be above 0")
temperatures = sorted({0.0125, 0.05, 0.2, 1.0, *TEMPERATURES})
perfect = pd.DataFrame(
    {
        f"{num_classes:,} classes": [
            f"{1 / (1 + (num_classes - 1) * np.exp(-1 / t)):.3f}" for t in temperatures
        ]
        for num_classes in (100, 11318)
    },
    index=pd.Index(temperatures, name="temperature"),
)
results.save_table("perfect", perfect, of_data=False)

# %% [markdown]
# It is compared with losses of chapter 2: *contrastive* (Hadsell, Chopra and LeCun, 2006) and *Multi-Similarity* (Wang et al., 2019), which look at
# pairs, *Proxy-Anchor* (Kim et al., 2020), proxies against the images of a batch, and *CosFace*, the same classifier with a margin: the right class
# has to win by $m$. All have the same batches and the same number of steps, and each its own head: layer norm belongs to NormSoftmax, and the others
# go without, as in their papers, unless a search finds it better for them. The sweep `layer_norm` gives every loss both heads. In the cell each loss
# stands with the settings it starts from and, after them, what a search tries.


# %%
class Method(NamedTuple):
    """How a loss is made, where it starts, what a search tries, its miner, whether layer norm."""

    make: Callable
    settings: dict
    space: dict
    miner: Callable | None = None
    layer_norm: bool = False


def norm_softmax(num_classes, dim, *, class_share, corrected, **settings):
    """Return NormSoftmax over all classes, or over a random share of them in each step."""
    if class_share == 1:
        return NormSoftmaxLoss(num_classes, dim, **settings)
    settings |= {"num_sampled": max(2, round(class_share * num_classes)), "corrected": corrected}
    return SampledNormSoftmaxLoss(num_classes, dim, **settings)


losses = {
    "contrastive": Method(
        lambda num_classes, dim, **settings: ContrastiveLoss(**settings),
        {"positive_margin": 0.0, "negative_margin": 1.0},
        {"positive_margin": between(0.0, 0.3), "negative_margin": between(0.3, 1.2)},
    ),
    "multi_similarity": Method(
        lambda num_classes, dim, **settings: MultiSimilarityLoss(**settings),
        {"positive_scale": 2.0, "negative_scale": 50.0, "base": 0.5},
        {
            "positive_scale": loguniform(1, 20),
            "negative_scale": loguniform(10, 160),
            "base": between(0.3, 1.0),
        },
        multi_similarity_miner,
    ),
    "proxy_anchor": Method(
        ProxyAnchorLoss,
        {"margin": 0.1, "scale": 32.0},
        {"margin": between(0.0, 0.3), "scale": loguniform(8, 64)},
    ),
    "cos_face": Method(
        CosFaceLoss,
        {"margin": 0.35, "scale": 20.0},
        {"margin": between(0.1, 0.7), "scale": loguniform(16, 256)},
    ),
    "norm_softmax": Method(
        norm_softmax,
        {"temperature": 0.05, "class_share": 1.0, "corrected": False},
        {"temperature": loguniform(0.02, 0.2)},
        layer_norm=True,
    ),
}

# %% [markdown]
# ## One run
#
# Everything that a sweep may change is a setting; where a sweep does not touch it, all methods share it.

# %%
COMMON = {
    "TRUNK": TRUNK,
    "WEIGHTS": WEIGHTS,
    "INPUT_CONVENTION": INPUT_CONVENTION,
    "EMBEDDING_DIM": EMBEDDING_DIM,
    "IMAGES_PER_CLASS": IMAGES_PER_CLASS,
    "LEARNING_RATE": LEARNING_RATE,
    "LOSS_LR": LOSS_LR,
}
if TRUNK not in TRUNKS:
    raise ValueError(f"TRUNK={TRUNK!r} is unknown; choose one of {', '.join(TRUNKS)}")
if RANDOM_CROP not in ("resized", "square"):
    raise ValueError(f"RANDOM_CROP={RANDOM_CROP!r} is unknown; choose resized or square")
if OPTIMIZER not in ("adam", "sgd"):
    raise ValueError(f"OPTIMIZER={OPTIMIZER!r} is unknown; choose adam or sgd")
if CACHED_VIEWS and RANDOM_CROP == "square":
    raise ValueError("cached views are resized crops; with CACHED_VIEWS set RANDOM_CROP=resized")

freeze = partial(cache_views, image_size=IMAGE_SIZE, scale=CROP_SCALE, device=device)
if CACHED_VIEWS:
    random_view, plain_view = RandomView, first_view
else:
    random_view = partial(RandomResizedCropFlip, IMAGE_SIZE, scale=CROP_SCALE)
    if RANDOM_CROP == "square":
        random_view = partial(RandomCropFlip, IMAGE_SIZE)
    plain_view = partial(centre_crop, image_size=IMAGE_SIZE)
ranks = tuple({1, *RECALL_AT})
measure = partial(evaluate, transform=plain_view, device=device, ks=ranks)


# %% [markdown]
# The model: trunk, layer norm, projection, unit length. Where there is no projection, the features themselves are embedded.


# %%
def defaults_of(loss):
    """Return the settings that a loss starts from, its head's included."""
    return COMMON | {"LAYER_NORM": losses[loss].layer_norm} | losses[loss].settings


def new_trunk(settings):
    """Return the trunk that the settings name, on the device."""
    return make_trunk(
        settings["TRUNK"],
        weights=settings["WEIGHTS"],
        convention=settings["INPUT_CONVENTION"],
        freeze_batch_norm=FREEZE_BN,
        pooling=POOLING,
        compiled=COMPILE,
    ).to(device)


def new_model(trunk, settings):
    """Return the trunk with a head: layer norm, projection, unit length."""
    dim = settings["EMBEDDING_DIM"]
    head = EmbeddingHead(
        trunk.out_features,
        dim,
        layer_norm=settings["LAYER_NORM"],
        bias=False,
        project=PROJECT_ALWAYS or dim != trunk.out_features,
    )
    return EmbeddingModel(trunk, head).to(device)


# %% [markdown]
# Training: the optimiser gets the class vectors as a group with a rate of its own. In a warm-up all but the trunk learn.


# %%
def new_sampler(labels, settings, seed):
    """Return batches with as many images of each class as the settings say, or random ones."""
    sampler = RandomSampler
    if settings["IMAGES_PER_CLASS"]:
        sampler = partial(MPerClassSampler, images_per_class=settings["IMAGES_PER_CLASS"])
    return sampler(labels, batch_size=BATCH_SIZE, seed=derive_seed(seed, "sampler"))


def train(loss, settings, images, trunk, seed, *, validate=None, keep_step=None):
    """Train one loss on some images; return the model and how training went."""
    spec, model = losses[loss], new_model(trunk, settings)
    own = {name: settings[name] for name in spec.settings}
    loss_fn = spec.make(images.num_classes, settings["EMBEDDING_DIM"], **own).to(device)

    def compute_loss(batch):
        views, labels = batch
        embeddings, labels = of_all(model(views)), of_all(labels)
        pairs = spec.miner(embeddings, labels) if spec.miner else None
        return loss_fn(embeddings, labels, pairs=pairs)

    augment = random_view(seed=derive_seed(seed, "views"))
    sampler = new_sampler(images.labels, settings, seed)
    groups = [
        {"params": model.parameters(), "lr": settings["LEARNING_RATE"]},
        {"params": loss_fn.parameters(), "lr": settings["LOSS_LR"]},
    ]
    optimizer = {"adam": Adam, "sgd": partial(SGD, momentum=0.9)}[OPTIMIZER]
    is_new = [*model.head.parameters(), *loss_fn.parameters()]  # without any, nothing to warm up
    fitted = fit(
        [model, loss_fn],
        image_batches(images, sampler, augment, device),
        compute_loss,
        optimizer(groups, lr=settings["LEARNING_RATE"], weight_decay=WEIGHT_DECAY),
        STEPS,
        learning_rate_factor=lambda step: 0.1 ** (step // DECAY_EVERY) if DECAY_EVERY else 1.0,
        still_modules=[trunk],
        still_steps=WARM_UP_STEPS if is_new else 0,
        validate=validate and partial(validate, model),
        keep_step=keep_step,
        measure_every=MEASURE_EVERY,
        precision=PRECISION,
        description=f"{loss}, seed {seed}",
    )
    return model, fitted


def metrics_on(part):
    """Return a function that measures a model on one part; None without one."""
    return part and (lambda model: measure(model, part).metrics)


# %% [markdown]
# Testing: at the step chosen and at the last one; embeddings as they are and, for some methods, their bits.


# %%
def train_and_test(loss, settings, splits, seed, *, step=None, bits=False):
    """Train one loss on one replicate; return results at the chosen and the last step, and the fit.

    With bits, results are two: of the embeddings, and of one bit per component of the same.
    """
    set_seed(seed, num_threads=NUM_THREADS)
    frozen, trunk = freeze(splits, new_trunk(settings), views=CACHED_VIEWS)
    validate = metrics_on(frozen.validation)
    model, fitted = train(
        loss, settings, frozen.train, trunk, seed, validate=validate, keep_step=step
    )
    last = selected = test_of(model, frozen, bits=bits)
    if fitted.best_step < STEPS:
        model.load_state_dict(fitted.best_states[0])
        selected = test_of(model, frozen, bits=bits)
    return selected, last, fitted


def test_of(model, splits, *, bits):
    """Return a list of the test results of a model: of its embeddings, and of their bits."""
    parts = [part for part in (splits.test, splits.gallery) if part]
    embeddings = [embed(model, part, plain_view, device=device).to(device) for part in parts]
    labels = [part.labels for part in parts]
    gallery = (embeddings[1], labels[1]) if splits.gallery else None
    found = evaluate_embeddings(embeddings[0], labels[0], ks=ranks, gallery=gallery)
    if not bits:
        return [with_clusters(found, labels[0])]
    codes = [binarise(one) for one in embeddings]
    searched = {"gallery": codes[1], "gallery_labels": labels[1]} if splits.gallery else {}
    of_bits = code_metrics(codes[0], labels[0], ks=ranks, **searched)
    worst, best = of_bits.bounds()["recall_at_1"]
    bounds = {"recall_at_1_worst": worst, "recall_at_1_best": best}
    return [with_clusters(found, labels[0]), Evaluation(found.embeddings, of_bits, bounds)]


def with_clusters(found, labels):
    """Return ``found`` with NMI and AMI of k-means, as many clusters as test classes."""
    clusters = clustering_metrics(found.embeddings, labels)
    return Evaluation(found.embeddings, found.retrieval, clusters)


# %% [markdown]
# ## The sweeps
#
# Each sweep changes one thing about NormSoftmax (`layer_norm`, about every loss) and keeps the defaults of all else. Points that
# agree in everything are trained once. NormSoftmax's points of `layer_norm`, `dimension` and `trunk` (the same dimensions with
# other networks) also yield rows that end in `_binary`: the same embeddings, one bit per component. Dimensions beyond a
# trunk's number of features are left out, as a linear map cannot fill them.

# %%
values = {
    "images_per_class": ("IMAGES_PER_CLASS", {n or "random": n for n in IMAGES_PER_CLASS_TRIED}),
    "temperature": ("temperature", {t: t for t in TEMPERATURES}),
    "dimension": ("EMBEDDING_DIM", {d: d for d in DIMENSIONS if d <= TRUNKS[TRUNK]}),
    "class_share": ("class_share", {share: share for share in CLASS_SHARES}),
}
sweeps = {
    sweep: {f"norm_softmax_{sweep}_{name}": {setting: value} for name, value in tried.items()}
    for sweep, (setting, tried) in values.items()
}
sweeps["class_share_corrected"] = {
    f"norm_softmax_class_share_corrected_{share}": {"class_share": share, "corrected": share < 1}
    for share in CLASS_SHARES
}
sweeps["layer_norm"] = {
    f"{loss}_layer_norm_{name}": {"LAYER_NORM": value}
    for loss in dict.fromkeys(["norm_softmax", *METHODS])
    for name, value in {"on": True, "off": False}.items()
}
sweeps["trunk"] = {}
for line in OTHER_TRUNKS if "trunk" in SWEEPS else []:
    if len(line.split()) != 3 or line.split()[0] not in set(TRUNKS) - {TRUNK}:
        raise ValueError(
            f"OTHER_TRUNKS: {line!r} should be another trunk than {TRUNK}, its weights and its input "
            "convention, with spaces between"
        )
    trunk, weights, convention = line.split()
    named = {"TRUNK": trunk, "WEIGHTS": weights, "INPUT_CONVENTION": convention}
    for dim in DIMENSIONS:
        if dim <= TRUNKS[trunk]:
            sweeps["trunk"][f"norm_softmax_{trunk}_{dim}"] = named | {"EMBEDDING_DIM": dim}
known = {"METHODS": losses, "SWEEPS": sweeps, "REFERENCES": OF_PIXELS + OF_FEATURES}
for name, choices in known.items():
    if unknown := set(globals()[name]) - set(choices):
        raise ValueError(f"{name}: there is no {min(unknown)}; choose from {', '.join(choices)}")
divisors = [n for n in range(1, BATCH_SIZE + 1) if BATCH_SIZE % n == 0]
for sweep, name, unfit, needed in (
    (
        "images",
        "IMAGES_PER_CLASS_TRIED",
        {*IMAGES_PER_CLASS_TRIED} - {0, *divisors},
        f"0 or {divisors}",
    ),
    ("class_share", "CLASS_SHARES", {s for s in CLASS_SHARES if not 0 < s <= 1}, "in (0, 1]"),
    ("dimension", "DIMENSIONS", {d for d in DIMENSIONS if d < 1}, "at least 1"),
):
    if unfit and any(one.startswith(sweep) for one in SWEEPS):
        raise ValueError(f"{name}: {min(unfit)} should be {needed}")
if "dimension" in SWEEPS and not sweeps["dimension"]:
    raise ValueError(f"DIMENSIONS={DIMENSIONS}: {TRUNK} has only {TRUNKS[TRUNK]} features")
trained = {method: {} for method in METHODS}
for sweep in SWEEPS:
    trained |= sweeps[sweep]
of_bits = {"norm_softmax", *sweeps["dimension"], *sweeps["trunk"]}
of_bits |= {"norm_softmax_layer_norm_on", "norm_softmax_layer_norm_off"}
has_bits = of_bits & set(trained)

# %% [markdown]
# ## The search
#
# As in chapter 2: with `SEARCH_TRIALS` every loss tries equally many settings, its defaults and then random ones (its own,
# both learning rates, images per class, and for the other losses layer norm or none), judged with the number of steps by mean MAP@R on quarters of the training classes
# held out. The points of the sweeps keep the defaults, and choose on the same quarters their number of steps alone.

# %%
shared_space = {
    "LEARNING_RATE": loguniform(LEARNING_RATE / 10, LEARNING_RATE * 10),
    "LOSS_LR": loguniform(LOSS_LR / 30, LOSS_LR * 30),
    "IMAGES_PER_CLASS": [n for n in (2, 4, 8) if BATCH_SIZE % n == 0] or [IMAGES_PER_CLASS],
}


def search(loss, defaults, seed, count):
    """Return the trials of one loss on the training classes of one replicate."""
    set_seed(seed, num_threads=NUM_THREADS)
    trunk = new_trunk(defaults)
    folds = [
        freeze(read_splits(seed=seed, fold=fold), trunk, views=CACHED_VIEWS)
        for fold in range(SEARCH_FOLDS)
    ]

    def scores(settings, fold):
        set_seed(seed, num_threads=NUM_THREADS)
        frozen, cached = fold
        fresh = cached if CACHED_VIEWS else new_trunk(settings)
        validate = metrics_on(frozen.validation)
        _, fitted = train(loss, settings, frozen.train, fresh, seed, validate=validate)
        return {entry["step"]: entry["validation_map_at_r"] for entry in fitted.history}

    of_head = {} if losses[loss].layer_norm else {"LAYER_NORM": [False, True]}
    space = shared_space | of_head | losses[loss].space
    drawn = draw_settings(defaults, space, count, seed=seed)
    return [run_trial(settings, folds, scores) for settings in drawn]


# %% [markdown]
# ## References
#
# What needs no gradient step, as in chapter 2. Layer norm and projection are part of the method, so they are not in these.


# %%
def refer(name, splits, seed):
    """Return the test results of one reference on one replicate."""
    set_seed(seed, num_threads=NUM_THREADS)
    frozen, _ = freeze(splits, new_trunk(COMMON), views=max(1, CACHED_VIEWS))
    found = evaluate_reference(name, splits, frozen, embedding_dim=EMBEDDING_DIM, ks=ranks)
    return with_clusters(found, splits.test.labels)


# %% [markdown]
# ## All runs

# %% tags=["runs"]
check_search(SEARCH_TRIALS, SEARCH_FOLDS, SELECTION)
runs = {}
for seed in SEEDS:
    splits, tested = load_splits(seed=seed), {}
    for reference in REFERENCES:
        run = runs[reference, seed] = results.run(reference, seed, splits.fingerprint)
        if not results.is_finished(run):
            results.save(run, splits.test.class_names, refer(reference, splits, seed))
    for method, changed in trained.items():
        loss = next(loss for loss in losses if method.startswith(loss))
        settings, step = defaults_of(loss) | changed, None
        if SEARCH_TRIALS:
            count = SEARCH_TRIALS if method in losses else 1
            searched = partial(search, loss, settings, seed, count)
            best = best_of(results.trials(method, seed, splits.fingerprint, searched))
            settings, step = best.settings, best.best_step
        own = {name: settings[name] for name in losses[loss].settings}
        loss_fn = losses[loss].make(splits.train.num_classes, 2, **own)
        all_settings = hyperparameters(loss_fn) | settings | ({"CHOSEN_STEP": step} if step else {})
        names = [method, f"{method}_binary"] if method in has_bits else [method]
        for name in names:
            runs[name, seed] = results.run(name, seed, splits.fingerprint, **all_settings)
        if all(results.is_finished(runs[name, seed]) for name in names):
            continue
        agreeing = str((loss, settings, step))  # sweeps share points, which are trained once
        with results.attempt(runs[method, seed]):
            if agreeing not in tested:
                bits = loss == "norm_softmax"
                tested[agreeing] = train_and_test(
                    loss, settings, splits, seed, step=step, bits=bits
                )
            selected, last, fitted = tested[agreeing]
            for name, at_chosen, at_last in zip(names, selected, last, strict=False):
                results.save(runs[name, seed], splits.test.class_names, at_chosen, at_last, fitted)
results.complete()

# %% [markdown]
# ## Main results
#
# Percent on test classes, with 95 % intervals over replicates and classes ([chapter 2](02_baseline_losses.ipynb) explains the
# columns). *NMI* compares k-means clusters, as many as test classes, with the classes, normalised by the geometric mean as in
# the paper's code. Labels drawn at random get the NMI beside it; *AMI* is adjusted for that (Vinh et al., 2010). Bits are not clustered.

# %%
if PICTURED_SEED not in SEEDS:
    raise ValueError(f"PICTURED_SEED={PICTURED_SEED} is not one of SEEDS={SEEDS}; set it to one")
rows = results.load(list(runs.values()))
by_class = {run.run_id: results.by_class(run.run_id) for run in runs.values()}
clusters = ("nmi_geometric", "nmi_geometric_of_random_labels", "ami")
means = (*(f"recall_at_{k}" for k in RECALL_AT if k > 1), *clusters)
headline = METHODS + ["norm_softmax_binary"] * ("norm_softmax" in METHODS)
table = summarise(rows, by_class, REFERENCES + headline, means=means)
results.save_table("main", table, circumstances(rows))

# %% [markdown]
# And what was published, ours beside it where we have a run.

# %%
shown = beside(rows, "03_norm_softmax", DATASET)
results.save_table("published", shown, caveat("03_norm_softmax", DATASET), of_data=False)

# %% [markdown]
# ## Learning curves
#
# A line per method, over the images seen. Left, the training loss relative to its first value; right, where training classes are held out, MAP@R on
# these. Bands span all replicates. Does a loss that falls faster also end higher?

# %% mystnb={"image": {"alt": "Training loss, and retrieval of held-out classes where there are any, over the images seen, a curve per loss."}}
results.save_figure("learning_curves", learning_curves(rows, METHODS))

# %% [markdown]
# It does not. NormSoftmax's loss falls fastest in `mini`, `features`, `birds` and `omniglot`, and where training classes are held out (`mini` and
# `birds`) the mean of another loss ends above it.
#
# ## Layer normalisation
#
# Zhai and Wu: faster, and better at the end (CUB-200-2011, ResNet-50); and embeddings around zero, which suit bits that ask whether a component is
# above it. Below, where the profile has this sweep, first a figure like the one above, of NormSoftmax with layer norm and without: does either line
# run ahead? Then a table: test results with and without, floats and bits; and, where training classes are held out, Recall@1 on these at the last
# step, the steps to 90 % of that, and the steps to 90 % of the better of the two. The other losses follow with the same two heads: is a difference
# between losses one between heads?


# %% mystnb={"image": {"alt": "Training loss, and retrieval of held-out classes where there are any, over the images seen, with and without layer norm."}}
def not_run(sweep):
    """Return what stands in the place of a sweep that this profile leaves out."""
    return f"Not in this profile: add {sweep} to SWEEPS."


def results_of(sweep):
    """Return one line per point of a sweep."""
    methods = [m + end for m in sweeps[sweep] for end in ("", "_binary") if (m + end) in ran]
    return summarise(rows, by_class, methods, means=("nmi_geometric", "ami"))


def published_part(part, dataset=DATASET):
    """Save and return the published numbers of one ablation."""
    table = published("03_norm_softmax", dataset, part)
    note = caveat("03_norm_softmax", dataset, part)
    name = f"published_{part}" + (f"_{dataset}" if dataset != DATASET else "")
    return results.save_table(name, table, note, of_data=False)


def show_sweep(sweep, label):
    """Save the table and the figure of a sweep and return the table."""
    if sweep not in SWEEPS:
        return not_run(sweep)
    points = {method.removeprefix(f"norm_softmax_{sweep}_"): method for method in sweeps[sweep]}
    curve = sweep_table(rows, by_class, points)
    results.save_figure(sweep, sweep_curves({"NormSoftmax": curve}, label))
    return results.save_table(sweep, results_of(sweep))


ran = set(rows["method"])
shown = not_run("layer_norm")
if "layer_norm" in SWEEPS:
    heads = [*sweeps["layer_norm"]]
    pairs = [heads[i : i + 2] for i in range(0, len(heads), 2)]  # one loss, with and without
    results.save_figure("layer_norm", learning_curves(rows, pairs[0]))
    steps = pd.concat([steps_to(rows, pair) for pair in pairs])
    shown = results.save_table("layer_norm", results_of("layer_norm").join(steps).fillna(""))
shown

# %% [markdown]
# In `features` and `birds` the two lines of the loss nearly coincide, and where held-out classes are shown (`birds`) the bands overlap: neither runs
# ahead clearly. What layer norm changes stands in the table, if anywhere. What was published:

# %%
published_part("layer_norm")

# %% [markdown]
# ## Images per class
#
# With several images of a class in a batch, a step learns from how they differ; but it sees fewer classes, and a batch of a single class says only
# where that class is. The paper's optimum on CUB-200-2011 was 25 images of 3 classes. The figure has Recall@1 on test classes over the number of
# images of each class, from batches drawn at random on the left to a single class on the right; bars are intervals of 95 %. Look for a hump, and for
# the fall at the right end.

# %% mystnb={"image": {"alt": "Retrieval over the number of images of each class in a batch, with intervals."}}
show_sweep("images_per_class", "images of each class in a batch")

# %% [markdown]
# In `birds` there is no hump: the line is level up to four images of each class, then it falls, and batches of a single class are far below all
# others. What was published:

# %%
published_part("class_balancing")

# %% [markdown]
# ## Temperature
#
# The paper sets 0.05; we found no sweep of it. The figure has Recall@1 on test classes over the temperature. Is 0.05 inside the hump, and how wide is
# that? (Bars, here and below, are of each point by itself, with all that test classes differ by; differences on the same classes are known three
# times as well: see the claims.)

# %% mystnb={"image": {"alt": "Retrieval over the temperature, with intervals."}}
show_sweep("temperature", "temperature")

# %% [markdown]
# Above frozen features (`features`) there is a hump with its top at 0.05, flat enough that the bars of neighbours overlap, and it falls more on the
# warm side. On the drawn birds (`mini`), from scratch, the line rises to the right end, so that the best temperature may lie beyond the values tried.
#
# ## Dimension, trunk and bits
#
# A float has 32 bits; *binary* rows keep one bit of each component and compare codes by the number of differing bits. With few
# bits many images tie; their Recall@1 is then the expectation over the order of ties, with its bounds (all ties wrong, all
# ties right) beside it: between them lies what a search library may report. The figure has Recall@1 over the bytes of an image, a line for floats and
# one for bits, a point for each dimension: which reaches a given recall with
# fewer bytes? (Floats have 32 bits here; half as many would do.)


# %% mystnb={"image": {"alt": "Retrieval over bytes per image, of embeddings as floating-point numbers and as bits, a curve per loss."}}
def num_bytes(changed, bits):
    """Return the bytes of an embedding with so many bits per component."""
    return -(-changed["EMBEDDING_DIM"] * bits // 8)


if "dimension" in SWEEPS:
    dims = sweeps["dimension"]
    curves = {
        name: sweep_table(
            rows,
            by_class,
            {num_bytes(changed, size): m + suffix for m, changed in dims.items()},
        )
        for name, suffix, size in (("float", "", 32), ("binary", "_binary", 1))
    }
    results.save_figure("dimension", sweep_curves(curves, "bytes per image", log=True))
    of_bits = rows.set_index("method").loc[[f"{m}_binary" for m in dims]].groupby(level=0)
    bounds = 100 * of_bits[["metric_recall_at_1_worst", "metric_recall_at_1_best"]].mean()
    bounds = bounds.map("{:.1f}".format).set_axis(["ties wrong", "ties right"], axis=1)
    table = summarise(rows, by_class, [m + end for m in dims for end in ("", "_binary")])
    sizes = [f"{num_bytes(changed, size):,}" for changed in dims.values() for size in (32, 1)]
    table = table.assign(bytes=sizes).join(bounds).fillna("")
    table = table[["bytes", "R@1", *bounds.columns, "RP", "MAP@R", "n"]]
    results.save_table("dimension", table)
table if "dimension" in SWEEPS else not_run("dimension")

# %% [markdown]
# In `features` the line of the bits lies left of that of the floats: a given recall takes fewer bytes as bits, but a larger dimension. Both lines
# rise steeply first and then level off.
#
# Trunk against dimension, mean Recall@1 in percent, floats and bits:

# %%
of_size = {m: d["EMBEDDING_DIM"] for m, d in (sweeps["dimension"] | sweeps["trunk"]).items()}
crossed = rows.assign(
    trunk=[params.get("TRUNK") for params in rows["params"]],
    dimension=rows["method"].str.removesuffix("_binary").map(of_size),
    code=np.where(rows["method"].str.endswith("_binary"), "bits", "float"),
).dropna(subset="dimension")
shown = not_run("dimension")
if len(crossed):
    crossed = 100 * crossed.pivot_table("metric_recall_at_1", ["trunk", "code"], "dimension")
    shown = results.save_table("trunks", crossed.round(1).rename(columns=int))
shown

# %%
published_part("dimension")

# %%
published_part("dimension", "cars196")

# %% [markdown]
# Storage is the point of bits, and so is search: the ten nearest among `SEARCHED_ITEMS` random codes by faiss, exactly, in
# milliseconds per query (1,000 at a time, median of three). The values do not matter to the time; the machine does.

# %%
import faiss  # only this cell needs it

faiss.omp_set_num_threads(NUM_THREADS)
generator = np.random.default_rng(0)
timed = {}
for dim in DIMENSIONS:
    items = generator.standard_normal((SEARCHED_ITEMS, dim), dtype=np.float32)
    packed = np.packbits(items > 0, axis=1)
    line = {"bytes, float": 4 * dim, "bytes, bits": packed.shape[1]}
    for name, index, data in (
        ("float", faiss.IndexFlatIP(dim), items),
        ("bits", faiss.IndexBinaryFlat(8 * packed.shape[1]), packed),
    ):
        index.add(data)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            index.search(data[:1000], 10)
            seconds.append(time.perf_counter() - start)
        line[f"ms, {name}"] = 1000 * np.median(seconds[1:]) / len(data[:1000])
    timed[dim] = line | {"times as fast": line["ms, float"] / line["ms, bits"]}
timed = pd.DataFrame(timed).T.rename_axis("dimension").round(3)
timed = timed.astype({"bytes, float": int, "bytes, bits": int})
on = f"On a CPU, {NUM_THREADS} thread(s), {SEARCHED_ITEMS:,} items; times change from run to run."
results.save_table("search_time", timed, on, of_data=False)

# %% [markdown]
# ## A part of the classes
#
# With very many classes the softmax is what a step costs: $C$ cosines per image, and as many class vectors to update. A step
# may instead draw a random part of the classes that contains those of its batch (and is no smaller than these). Fewer terms
# make the sum, and so the loss, too small, and less of its gradient comes from classes outside the batch. *Corrected* counts
# each drawn class as many times as there are classes like it, one over its chance to be drawn
# (Jean et al., 2015), so that the sum is right on average.
# [class_subsampling.md](../results/benchmarks/class_subsampling.md) measures how far both are off, with 11,318 classes. With
# random class vectors a tenth of them turns the gradient of the embeddings by nothing that matters (cosine 0.999 with the full
# one). Where made-up embeddings lie near the vectors of their classes it does (0.87), and the correction mends most of that
# (0.99). (Adam's momentum goes on moving class vectors that a step leaves out.)
#
# Two figures, where the profile has these sweeps: Recall@1 on test classes over the share of the training classes that a step uses, from few on the
# left to all on the right. First without the correction: is there a share from which on the line is level?

# %% mystnb={"image": {"alt": "Retrieval over the share of classes in the softmax, with intervals."}}
show_sweep("class_share", "share of the training classes in the softmax of a step")

# %% [markdown]
# In `omniglot` there is none: the mean rises up to the right end, where all classes take part, though the bars of neighbours overlap. Now with the
# correction, which should make the line more level:

# %% mystnb={"image": {"alt": "Retrieval over the share of classes in a corrected softmax, with intervals."}}
show_sweep("class_share_corrected", "share of the training classes, corrected")

# %% [markdown]
# In `omniglot` it does not: the line with the correction rises like the one without.
#
# What a step costs: forward, backward and the update of the class vectors by plain SGD, 75 embeddings of 512 components of 15
# classes, all classes against 1,000 of them with a sparse gradient; median of three. Memory follows from the sizes (measured:
# within 15 % from 100,000 classes on, with fewer up to 100 MiB more): the class vectors, and six or seven arrays as large as those that take part, on the way back through
# their normalisation. Already at the 11,318 classes of SOP a subset of 1,000 is several times as fast; one of 10,000 is not.

# %%
of_row, costs = 4 * 512 / 2**20, {}
makers = {
    "all": lambda count: NormSoftmaxLoss(count, 512),
    "1,000": lambda count: SampledNormSoftmaxLoss(count, 512, num_sampled=1000, sparse=True),
}
for count, (name, make_loss) in product(STEP_CLASSES, makers.items()):
    taking_part = count if name == "all" else min(count, 1000)
    needed = of_row * (count + taking_part * (6 if name == "all" else 7))
    line = costs.setdefault(f"{count:,}", {}) | {f"MiB, {name}": f"{needed:,.0f}"}
    costs[f"{count:,}"] = line | {f"ms, {name}": "not run: too little memory"}
    if needed + 1000 > psutil.virtual_memory().available / 2**20:
        continue
    loss_fn, seconds = make_loss(count), []
    optimizer = SGD(loss_fn.parameters(), lr=0.1)
    for _ in range(4):
        embeddings = normalize(torch.randn(75, 512)).requires_grad_()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss_fn(embeddings, torch.arange(75) // 5).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    costs[f"{count:,}"][f"ms, {name}"] = f"{1000 * np.median(seconds[1:]):,.0f}"
    del loss_fn, optimizer
costs = pd.DataFrame(costs).T.rename_axis("classes")
on = f"On a CPU, {NUM_THREADS} thread(s); times change from run to run."
results.save_table("step_cost", costs, on, of_data=False)

# %% [markdown]
# ## A map of unseen classes, and nearest neighbours
#
# UMAP (McInnes, Healy and Melville, 2018) of the first ten test classes, a point per image and a colour per class, before training and after training
# with NormSoftmax (without it, the first method). Distances between far clusters mean nothing; whether a colour holds together does.

# %% mystnb={"image": {"alt": "A map of test images for each method, coloured by class."}}
test = load_splits(seed=PICTURED_SEED).test
best = "norm_softmax" if "norm_softmax" in METHODS else METHODS[0]
pictured = results.embeddings(runs[best, PICTURED_SEED])
panels = {f"after training with {best}": pictured}
if "frozen_trunk" in REFERENCES:
    panels = {"before training": results.embeddings(runs["frozen_trunk", PICTURED_SEED])} | panels
results.save_figure("umap", embedding_maps(panels, test.labels))

# %% [markdown]
# As in chapter 2, training gathers the colours where the trunk starts from random weights (`mini`, `omniglot`); where it knows photographs
# (`features`, `birds`) they hold together before, and classes that lie side by side before mostly do so after.
#
# Queries of unseen classes (black frame) and their nearest neighbours, right (✓) or wrong (✗): spread evenly over those whose
# first neighbour is right, then over the others. What do wrong neighbours share with their query?

# %% tags=["pictures"] mystnb={"image": {"alt": "Queries, each followed by its nearest images, framed by whether they are of its class."}}
retrieved = evaluate_embeddings(pictured, test.labels, ks=(1,)).retrieval
picked = spread_queries(retrieved.per_query["recall_at_1"].numpy(), 6)
figure = nearest_neighbours(test, retrieved.neighbours[picked, :6], retrieved.queries[picked])
results.save_figure("neighbours", figure, keep_local=DATASET not in PICTURES_MAY_BE_SHOWN)

# %% [markdown]
# Of drawn birds it is mostly colour and pose; of characters the outline, such as a ring, an arch or an angle.
#
# ## Claims
#
# Read as in chapter 2. A claim about a shape (*rises, then falls*) is cut into comparisons of two points, listed before the
# runs ([`claims.csv`](claims.csv)); the figures above show the shape itself, without a verdict. Holm's correction (Holm, 1979) is over all
# claims of this chapter that the profile could test.

# %%
rung = rung_of(DATASET, WEIGHTS, CACHED_VIEWS, is_subset=bool(results.stamp))
overlap = 1.0 if PROTOCOL == "random" and DATASET not in FAMILIES else 0.0
claims = judge("03_norm_softmax", rung, rows, by_class, overlap=overlap)
show_claims(results.save_claims(claims))

# %% [markdown]
# ## What this shows, and what not
#
# **Photographs, frozen trunk (`features`).** No loss passes within-class whitening of the same features (65.1 Recall@1, 21.4 MAP@R): the
# best, CosFace, has 62.4 and 21.2. What follows compares losses, then, on a task where a closed form does better. *Dimension:* 64 to 512 adds nine
# points of Recall@1, which holds (the paper's GoogLeNet: nine on CUB-200-2011; its ResNet-50: four on Cars). From 512 to 1,280 it is 0.8, between
# -0.2 and 1.9: neither equal nor better is resolved. *Bits:* what one bit per component loses shrinks from 17.5 points at 64
# dimensions to 4.9 at 512 and 2.0 at 1,280. *At most two points* is where the loss lies, so the claim is not resolved; the paper lost 2.4 at 1,024 bits
# (GoogLeNet, read off a plot) and 1.7 at 2,048 (ResNet-50). Per byte bits do well: 160 bytes of them have 61.4, 256 bytes of floats 53.3. (No claim; and with more bits any
# projection would lose less.) *Temperature:* the mean peaks at the paper's 0.05. The warm side is resolved, four times as much loses four points; a quarter loses
# two, which is not. Nor had cold temperatures finished: on held-out classes they still rose at 200 steps, the limit, in all splits,
# as 0.05 did in eight of ten and 64 and 128 dimensions in all. *Layer norm* adds half a point of Recall@1 to NormSoftmax where no trunk is trained, and nothing to the other losses, or takes up to
# half a point; bits lose as much with it as without.
#
# **What was not shown there.** That NormSoftmax is not worse than contrastive and Multi-Similarity, and equivalent to CosFace. After the search its Recall@1
# is about a point below theirs; with the defaults of all and layer norm for both it is half a point above Multi-Similarity and 0.2 above CosFace. Neither is resolved. NormSoftmax itself
# has 62.6 after choosing its steps alone, against 61.1 after six trials on two folds: a hint, seen on test classes, that such a search loses as often as it gains. CosFace kept its
# defaults in nine of ten splits, but the search drew its scale from 16 to 256, mostly colder than the sweep would advise, and NormSoftmax's from 5 to 50. The search could give layer norm to
# the other losses too: it did so in four of ten splits for Multi-Similarity and Proxy-Anchor, and never for contrastive and CosFace.
#
# **Own heads.** An earlier version of this chapter gave all losses NormSoftmax's layer norm, and with it ten points less to Multi-Similarity and Proxy-Anchor on the drawn birds of `mini`: a difference between
# heads that looked like one between losses. Now each has its own head, and the sweep gives both to each. On these birds, after 160 steps from scratch, layer norm does not help NormSoftmax either (chapter 2 has it without), and a
# temperature of 0.2 is better than the paper's 0.05 (38 against 33): the paper's recipe is for pre-trained trunks.
#
# **Photographs, whole trunk (`birds`), four splits.** These rows are of the earlier version, with layer norm for all losses. Here every loss has a higher mean than whitening (54.5 Recall@1), and NormSoftmax at 59.6 one a point above
# contrastive and Multi-Similarity; four splits resolve none of the claims, not even the largest, since what they share in training classes
# may be all that they agree on. *Layer norm* adds 1.2 points of Recall@1 and 1.7 to the bits (the paper: 4.3, or 6 at the end); both reach 90 % of their end by the first measured
# steps. *Images per class:* no hump. Random batches, one and four images per class are within half a point; 16 lose five points, and batches of a single class fall
# to 26, far below the frozen trunk. The collapse is the paper's (20 points there); its gain from 25 images of 3 classes is not here, where the sign is the opposite.
# The paper trains batch norms, which see what a batch holds; ours are frozen.
#
# **Characters, a small network from scratch (`omniglot`), three splits of alphabets.** Multi-Similarity is 4.8 points of Recall@1 above NormSoftmax (62.1 and 57.3), NormSoftmax 3.5 above CosFace; neither is resolved. *A part of the classes:* with about a thousand training classes a tenth of them in each step costs 3.8 points of Recall@1 after 600 steps,
# with the correction as without; a half costs about one. The claim that nothing changes is reversed with the correction (C6b) and not resolved without,
# where splits vary more. After the benchmark, in which the correction restores the gradient, that surprises. It does so for the embeddings of one step; a
# class vector still meets its wrong images in about a tenth of the steps only, and no correction changes how often. If that only delayed learning, the gap should shrink as training goes on. Both with four times as many steps: after 2,400 (rows in `results/omniglot/longer`) all classes retrieve at 71.4 and a tenth at 67.7,
# 3.7 points less as before, with the correction at 68.7, 2.7 less (t interval -4.6 to -0.7, not resolved by three splits). So training longer takes at most a third of it, and why the rest stays we do not know. (A tenth for 2,400 steps is far better than all classes for 600: more steps are worth more than a whole softmax, where they cost less.)
# Subsampling pays where the softmax is what a step costs, by the benchmark from some ten thousand classes on, and then not in full.
#
# **Not testable here.** The weights of `features` and `birds` have their batch norms folded, so they stay frozen; the paper
# trains them, with batches of three classes, whose statistics say much about these classes. Whether images per class act
# through the softmax or through batch norm needs a trunk with batch norms of its own. `features` trains no trunk at all:
# warm-up and layer norm mean less there. The drawn birds have 50 training classes, too few for a small part of them to be
# drawn. In `paper` all losses would share NormSoftmax's own recipe, of three classes per batch, which is no equal chance;
# so the claims that compare losses are not judged there.
#
# **Why do others not reach 89.3 on Cars?** The published rows of 2,048 and more dimensions, R@1 in percent:

# %%
large = {}
for dataset, title in TITLES.items():
    rows_of = published("03_norm_softmax", dataset)
    is_large = rows_of.index.str.startswith("NormSoftmax") & rows_of["dim"].isin(["2048", "4096"])
    large[title] = rows_of.loc[is_large, ["trunk", "dim", "R@1", "source", "certainty"]]
results.save_table("published_large", pd.concat(large, names=["data"]), of_data=False)

# %% [markdown]
# On Cars the reproduction by leftthomas has 86, Microsoft's with fastai 84 (87 with 4,096 dimensions); on CUB-200-2011 they are
# 1.2 and 0.3 points below the paper. Nobody has run it here. Candidates, to be tried in this order: the learning rate, which the authors set ten times higher on Cars than on CUB (0.01); batch norms,
# which they train; the schedule (fastai's is one cycle of 12 + 12 epochs, 0.01 for the head and 0.0001 for the trunk);
# images squeezed to a square rather than cropped; and whether the best or the last epoch is reported. All but one cycle are
# parameters here: `LEARNING_RATE`, `FREEZE_BN`, `DECAY_EVERY`, `SHORT_SIDE`, `SELECTION`.
#
# **Try this.** Set `TEMPERATURES = [0.05, 1.0]`: can the loss still fall? Set `SWEEPS = ["layer_norm"]`: which of the four
# losses minds?
