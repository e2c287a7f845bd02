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
# # 1. Evaluation
#
# > Musgrave, Belongie and Lim, *A Metric Learning Reality Check*, ECCV 2020,
# > [arXiv:2003.08505](https://arxiv.org/abs/2003.08505), and the evaluation code of the papers that this book reproduces.
#
# An embedding places images so that those of one class are close together. How good is it? Two people can score
# the same embedding and get numbers that differ by more than the papers' methods do: one tests on half as many
# classes, one keeps a bit of each component, one counts ties as right. And two embeddings that differ by
# a point on one set of classes may not differ on another.
#
# **What this chapter shows**, computed below except where a source is named:
#
# 1. what the metrics mean, on five points, by hand;
# 2. what the rules of older code do to a number;
# 3. one embedding, scored under every protocol that the papers use;
# 4. what ties do to binary codes, and what chance does to clustering scores;
# 5. how wide an interval must be to hold what it promises, and which published differences a run could resolve;
# 6. what exact evaluation costs.
#
# The other chapters use the rules that end up here as *this book's*: a query is masked by its index, ties count
# against the model, R is the query's own, images that are alone in their class are no queries, and no setting is chosen
# on test classes. Some words: a *trunk* is the network up to its pooled features, a *head* maps these to the embedding; a
# *replicate* is one split into training and test classes with one seed; *drawn* images are made by this book's code.

# %% tags=["parameters"]
DATASET: str = "aviary"  # images: aviary or butterflies (drawn), or one that `dmlkit data` lists
DATA_DIR: str = "data"  # folder that holds real data sets, from the project root
MAX_CLASSES: int = 0  # use only the first classes, for a quick look (half of them test); 0: all
MAX_IMAGES_PER_CLASS: int = 0  # use only the first images of each class; 0: all
PROTOCOL: str = "random"  # classes: redrawn per seed (random), official, or halves (reality_check)
SELECTION: str = "last"  # train on all training classes (last) or on four fifths (validation)
SEEDS: list = [0, 1, 2]  # replicates, each with its own classes and initial weights
PICTURED_SEED: int = 0  # replicate whose curves and codes are shown, one of SEEDS
TRUNK: str = "small_convnet"  # network: small_convnet, mobilenet_v2 or resnet50
WEIGHTS: str = "none"  # initial weights: none (random), imagenet, or the path of a state dict
INPUT_CONVENTION: str = "torchvision"  # normalisation of inputs: torchvision, tensorflow or caffe
FREEZE_BN: bool = False  # keep the statistics of batch norms fixed
CACHED_VIEWS: int = 0  # above 0: freeze the trunk, train heads on features of so many views
IMAGE_SIZE: int = 48  # side of the images the trunk sees, pixels
CACHE_SIZE: int = 48  # side at which images are kept; test images are centre-cropped from it
SHORT_SIDE: int = 0  # above 0: crop from photographs resized to this shorter side; 0: from squares
CROP_SCALE: list = [0.5, 1.0]  # area of a random training crop, as a share of the image
EMBEDDING_DIM: int = 64  # size of an embedding, D
STEPS: int = 160  # optimiser steps per run
MEASURE_EVERY: int = 20  # steps between points of the training loss
BATCH_SIZE: int = 64  # images per step
IMAGES_PER_CLASS: int = 4  # images of each class in a batch
LEARNING_RATE: float = 0.001  # Adam's, for trunk and head
LOSS_LR: float = 0.01  # Adam's, for the class weights of the loss
RECALL_AT: list = [1, 2, 4, 8, 16, 32]  # numbers of neighbours K of Recall@K
SIMULATIONS: int = 500  # made-up experiments per line of the tables on intervals
DEVICE: str = "auto"  # auto (a GPU if there is one), cpu or cuda
PRECISION: str = "float32"  # float32, or bfloat16 for automatic mixed precision
DETERMINISTIC: bool = False  # let a GPU, too, make the same numbers twice; slower there
NUM_THREADS: int = 1  # CPU threads per process; results on a CPU depend on it
RESUME: bool = True  # reuse runs that the same code and parameters have finished
RESULTS_DIR: str = "results/local/mini"  # where results go, from the project root

# %%
from functools import lru_cache, partial
from itertools import combinations, product
from math import inf, sqrt

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from scipy import stats
from torch.nn.functional import normalize
from torch.optim import Adam

from dmlkit.batches import image_batches
from dmlkit.claims import holm, p_value
from dmlkit.datasets import load
from dmlkit.evaluation import evaluate
from dmlkit.features import cache_views
from dmlkit.intervals import estimate, paired_difference
from dmlkit.losses import NormSoftmaxLoss
from dmlkit.metrics import (
    binarise,
    clustering_metrics,
    code_metrics,
    count_relevant,
    retrieval_metrics,
)
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT
from dmlkit.plots import set_style
from dmlkit.processes import of_all
from dmlkit.results import ChapterResults, read_scores
from dmlkit.samplers import MPerClassSampler
from dmlkit.seeding import derive_seed, set_seed
from dmlkit.simulation import SCHEMES, draw_scores, draw_splits
from dmlkit.tables import circumstances
from dmlkit.training import choose_device, fit
from dmlkit.transforms import RandomResizedCropFlip, RandomView, centre_crop, first_view

results = ChapterResults("01_evaluation", globals())
device = choose_device(DEVICE, deterministic=DETERMINISTIC)
set_style()

# %% [markdown]
# ## Five points, by hand
#
# Five embeddings on the unit circle, in two classes, A and B. Each in turn is the *query*; the other four are
# ranked by their cosine similarity to it. R is the number of others of its class.
#
# - **Recall@K**: is any of the first K of the query's class? (Information retrieval calls its mean the hit rate;
#   Recall@1 is also the *precision at 1*.)
# - **R-precision**: the share of the query's class among the first R.
# - **MAP@R** (Musgrave et al., 2020): the precision at each right one of the first R, summed and divided by R. It also
#   rewards having the right ones early.
# - **Average precision** (its mean is *mAP*): the same over all ranks, so every relevant item counts, however late.

# %%
degrees = torch.tensor([0, 10, 45, 30, 100])
points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
classes = torch.tensor([0, 0, 0, 1, 1])
by_hand = retrieval_metrics(points, classes, ks=(1, 2), rank_all=True)
ranking = ["".join("AB"[classes[item]] for item in row) for row in by_hand.neighbours]
pd.DataFrame(
    {
        "query": [
            f"{'AB'[c]} at {d}°" for c, d in zip(classes.tolist(), degrees.tolist(), strict=True)
        ],
        "ranking": ranking,
        "R": (count_relevant(classes, classes) - 1).tolist(),
        **{name: values.round(decimals=3).tolist() for name, values in by_hand.per_query.items()},
    }
).set_index("query")

# %% [markdown]
# Follow the query at 45°: it sees B (30°), A (10°), A (0°), B. The first is wrong, so Recall@1 is 0 and Recall@2 is 1. Of the
# first R = 2 one is right, at rank 2, where the precision is 1/2: R-precision is 1/2, MAP@R is (1/2)/2 = 1/4. The other right
# one comes at rank 3, where the precision is 2/3: average precision is (1/2 + 2/3)/2 = 0.583.
#
# ## The rules of older code
#
# Written as the repositories have them, in as few lines as possible. None of these is this book's.


# %%
def similarity_and_matches(embeddings, labels):
    """Return all cosine similarities (N, N) and which pairs are of one class, self included."""
    return embeddings @ embeddings.T, labels[:, None] == labels


def drop_first_column(embeddings, labels):
    """Recall@1 when the most similar item is taken for the query itself."""
    similarity, is_match = similarity_and_matches(embeddings, labels)
    second = similarity.topk(2, dim=1).indices[:, 1:]
    return is_match.gather(1, second).float().mean().item()


def subtract_identity(embeddings, labels):
    """Recall@1 when self stays at similarity minus 1 and only strictly better negatives count."""
    similarity, is_match = similarity_and_matches(embeddings, labels)
    similarity = similarity - torch.eye(len(labels))
    best = similarity.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarity > best) & ~is_match).any(dim=1).logical_not().float().mean().item()


def second_best_positive(embeddings, labels):
    """Recall@1 when the best of the class is taken for the query, and ties count as right."""
    similarity, is_match = similarity_and_matches(embeddings, labels)
    positives = similarity.masked_fill(~is_match, -torch.inf)
    second = positives.topk(2, dim=1).values[:, 1:]
    return ((similarity > second) & ~is_match).any(dim=1).logical_not().float().mean().item()


def r_with_the_query(embeddings, labels):
    """MAP@R when R counts the query too (called mAP_c there)."""
    similarity, is_match = similarity_and_matches(embeddings, labels)
    sizes = is_match.sum(dim=1)
    nearest = similarity.topk(int(sizes.max()) + 1, dim=1).indices[:, 1:]
    rank = torch.arange(1, nearest.shape[1] + 1)
    is_hit = is_match.gather(1, nearest) & (rank <= sizes[:, None])
    return ((is_hit.cumsum(dim=1) / rank * is_hit).sum(dim=1) / sizes).mean().item()


older_rules = {
    "recall_at_1_first_dropped": drop_first_column,
    "recall_at_1_identity_subtracted": subtract_identity,
    "recall_at_1_second_best": second_best_positive,
    "map_r_with_query": r_with_the_query,
}

# %% [markdown]
# On three embeddings whose worth is plain. *Collapsed*: 12 images of 3 classes, all at one point; whoever ranks them guesses.
# *Perfect*: 5 classes of 10 images, each class at a point of its own. *Doubled*: every image is there twice, the second
# time under another class, as happens where labels are noisy or a data set holds duplicates; every nearest neighbour is wrong.

# %%
generator = torch.Generator().manual_seed(0)
singles = normalize(torch.randn(40, 16, generator=generator))
plain_cases = {
    "collapsed": (torch.ones(12, 16) / 4, torch.arange(12) % 3),
    "perfect": (torch.eye(16)[torch.arange(50) % 5], torch.arange(50) % 5),
    "doubled": (torch.cat([singles, singles]), torch.arange(80) // 4),
}


def score_by_all_rules(embeddings, labels):
    """Return Recall@1 and MAP@R by this book's rules and by the older ones."""
    ours = retrieval_metrics(embeddings, labels, ks=(1,)).means()
    return {
        "recall_at_1": ours["recall_at_1"],
        **{name: rule(embeddings, labels) for name, rule in older_rules.items()},
        "map_at_r": ours["map_at_r"],
    }


# %% [markdown]
# Each row is a rule. The first four score Recall@1: this book's; the first of K + 1 neighbours dropped as self, as in the code of
# Proxy-Anchor (Kim et al., 2020), of ProxyNCA (Movshovitz-Attias et al., 2017) and of many more; the identity matrix subtracted, and only
# strictly better negatives counted (Deep_Metric); the best of the class taken for self, as in the code of Multi-Similarity
# (Wang et al., 2019). The last two are MAP@R, where R counts the query, as in the mAP_c of Revisiting_DML (Roth et al., 2020), and
# where it does not (this book).

# %%
said = {
    "recall_at_1": "Recall@1, this book",
    "recall_at_1_first_dropped": "Recall@1, first neighbour dropped",
    "recall_at_1_identity_subtracted": "Recall@1, identity subtracted, ties right",
    "recall_at_1_second_best": "Recall@1, best of the class dropped, ties right",
    "map_r_with_query": "MAP@R, R counts the query",
    "map_at_r": "MAP@R, this book",
}
rules = pd.DataFrame({name: score_by_all_rules(*case) for name, case in plain_cases.items()})
rules = rules.loc[list(said)].rename(said).rename_axis("rule")
results.save_table("rules", rules.mul(100).round(1), "Percent.", of_data=False)

# %% [markdown]
# A collapsed embedding is perfect wherever ties count as right. A perfect one scores 90 where R counts the query, because
# no ranking can fill the last of ten places. And in *doubled* a query ties with its duplicate at similarity 1: whoever drops
# the first column drops the duplicate half of the time, and the query then counts as its own right answer.
#
# ## One embedding
#
# The rest of the chapter looks at embeddings of unseen classes from a network before training (*frozen trunk*)
# and after training with NormSoftmax (Zhai and Wu, 2019), as in chapter 2. Each replicate draws its test classes anew: new species where
# images are drawn, another half of the classes of a set of photographs. This cell only says how a run is made.

# %%
load_splits = lru_cache(maxsize=1)(
    partial(
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
)
new_trunk = partial(
    make_trunk, TRUNK, weights=WEIGHTS, convention=INPUT_CONVENTION, freeze_batch_norm=FREEZE_BN
)
freeze = partial(cache_views, image_size=IMAGE_SIZE, scale=CROP_SCALE, device=device)
random_view = (
    RandomView if CACHED_VIEWS else partial(RandomResizedCropFlip, IMAGE_SIZE, scale=CROP_SCALE)
)
plain_view = first_view if CACHED_VIEWS else partial(centre_crop, image_size=IMAGE_SIZE)
ranks = tuple({1, *RECALL_AT})


def train(splits, trunk, seed):
    """Return a model trained with NormSoftmax, and how training went."""
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, EMBEDDING_DIM)).to(device)
    loss_fn = NormSoftmaxLoss(splits.train.num_classes, EMBEDDING_DIM).to(device)
    sampler = MPerClassSampler(
        splits.train.labels,
        batch_size=BATCH_SIZE,
        images_per_class=IMAGES_PER_CLASS,
        seed=derive_seed(seed, "sampler"),
    )
    augment = random_view(seed=derive_seed(seed, "views"))
    batches = image_batches(splits.train, sampler, augment, device)
    own_rate = {"params": loss_fn.parameters(), "lr": LOSS_LR}
    fitted = fit(
        [model, loss_fn],
        batches,
        lambda batch: loss_fn(of_all(model(batch[0])), of_all(batch[1])),
        Adam([{"params": model.parameters(), "lr": LEARNING_RATE}, own_rate]),
        STEPS,
        precision=PRECISION,
        measure_every=MEASURE_EVERY,
        description=f"norm_softmax, seed {seed}",
    )
    return model, fitted


# %% [markdown]
# ## Every protocol the papers use
#
# The same embedding again, and nothing changes but the question. Besides the older rules:
#
# - the first half of the test classes, so fewer to confuse; or half of the images as queries and the other half as their
#   gallery, as In-Shop (Liu et al., 2016) has it, so fewer right ones and fewer wrong ones;
# - one bit per component (NormSoftmax's binary embeddings), with ties in expectation, and with ties counted as right;
# - NMI: k-means with as many clusters as classes, then the mutual information of clusters and classes over a mean of their
#   entropies. The mean is arithmetic in today's scikit-learn and was geometric before version 0.22; k-means runs 20 iterations
#   once (pytorch-metric-learning) or 300 iterations ten times (NormSoftmax); AMI (Vinh et al., 2010) subtracts what
#   chance gives.


# %%
def score_by_all_protocols(embeddings, labels, seed):
    """Return what the protocols say of one embedding, by name, fractions."""
    recall = partial(retrieval_metrics, ks=(1,))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    asked, searched = order[::2], order[1::2]
    half = labels < (labels.max() + 1) // 2
    codes = code_metrics(binarise(embeddings), labels, ks=(1,))
    once = clustering_metrics(embeddings, labels, iterations=20, restarts=1, seed=seed)
    best_of_ten = clustering_metrics(embeddings, labels, iterations=300, restarts=10, seed=seed)
    return {
        **{name: rule(embeddings, labels) for name, rule in older_rules.items()},
        "recall_at_1_half_the_classes": recall(embeddings[half], labels[half]).means()[
            "recall_at_1"
        ],
        "recall_at_1_half_as_gallery": recall(
            embeddings[asked],
            labels[asked],
            gallery=embeddings[searched],
            gallery_labels=labels[searched],
        ).means()["recall_at_1"],
        "recall_at_1_binary": codes.means()["recall_at_1"],
        "recall_at_1_binary_ties_right": codes.bounds()["recall_at_1"][1],
        "nmi_arithmetic_once": once["nmi_arithmetic"],
        "nmi_arithmetic": best_of_ten["nmi_arithmetic"],
        "nmi_geometric": best_of_ten["nmi_geometric"],
        "nmi_of_random_labels": best_of_ten["nmi_arithmetic_of_random_labels"],
        "ami": best_of_ten["ami"],
    }


# %% [markdown]
# ## All runs
#
# One row per embedding and replicate is kept under `RESULTS_DIR`, with all these numbers in it. (More than 10,000 test
# images are scored by the protocols on the first 10,000, since the older rules hold all pairs at once.)

# %% tags=["runs"]
runs = {}
for seed, method in product(SEEDS, ["frozen_trunk", "norm_softmax"]):
    splits = load_splits(seed=seed)
    run = runs[method, seed] = results.run(method, seed, splits.fingerprint)
    if results.is_finished(run):
        continue
    set_seed(seed, num_threads=NUM_THREADS)
    trunk = new_trunk().to(device)
    frozen, trunk = freeze(splits, trunk, views=CACHED_VIEWS)
    with results.attempt(run):
        model, fitted = train(frozen, trunk, seed) if method == "norm_softmax" else (trunk, None)
        found = evaluate(
            model, frozen.test, plain_view, device=device, ks=ranks, gallery=frozen.gallery
        )
        first = slice(10_000)
        found.of_the_set.update(
            score_by_all_protocols(found.embeddings[first], splits.test.labels[first], seed)
        )
        results.save(run, splits.test.class_names, found, fit=fitted)
results.complete()

# %%
if PICTURED_SEED not in SEEDS:
    raise ValueError(f"PICTURED_SEED={PICTURED_SEED} is not one of SEEDS={SEEDS}; set it to one")
rows = results.load(list(runs.values()))
trained = rows[rows["method"] == "norm_softmax"].set_index("seed")
asked_of = {
    "recall_at_1": ("Recall@1", "this book"),
    "recall_at_1_first_dropped": ("Recall@1", "first neighbour dropped as self"),
    "recall_at_1_identity_subtracted": ("Recall@1", "identity subtracted, ties right"),
    "recall_at_1_second_best": ("Recall@1", "best of the class dropped, ties right"),
    "recall_at_1_half_the_classes": ("Recall@1", "first half of the test classes"),
    "recall_at_1_half_as_gallery": ("Recall@1", "half of the images search the other half"),
    "recall_at_1_binary": ("Recall@1", "one bit per component, ties in expectation"),
    "recall_at_1_binary_ties_right": ("Recall@1", "one bit per component, ties right"),
    "map_at_r": ("MAP@R", "this book"),
    "map_r_with_query": ("MAP@R", "R counts the query"),
    "nmi_arithmetic": ("NMI", "arithmetic mean, best of 10 restarts"),
    "nmi_arithmetic_once": ("NMI", "arithmetic mean, a single restart"),
    "nmi_geometric": ("NMI", "geometric mean, best of 10 restarts"),
    "ami": ("NMI", "adjusted for chance (AMI)"),
    "nmi_of_random_labels": ("NMI", "of random labels"),
}
table, reference = [], {}
for name, (metric, protocol) in asked_of.items():
    values = 100 * trained[f"metric_{name}"].round(5)
    line = {"metric": metric, "protocol": protocol, "%": f"{values.mean():.1f}"}
    if metric in reference:
        change = values - reference[metric]
        line["change"] = f"{change.mean():+.1f}" if change.any() else "none"
        line["least to most"] = f"{change.min():+.1f} to {change.max():+.1f}"
    reference.setdefault(metric, values)
    table.append(line)
protocols = pd.DataFrame(table).fillna("").set_index(["metric", "protocol"])
note = f"NormSoftmax, mean of {len(trained)} replicate(s); the change is against the first line of each metric."
results.save_table("protocols", protocols, f"{note} {circumstances(rows)}")

# %% [markdown]
# Where a float embedding has no ties and no duplicates, the three older rules of Recall@1 agree with this book's, which is
# why nobody noticed; R counting the query lowers MAP@R on any embedding. What moves Recall@1 is the question: how many classes can
# be confused, how many items are searched, how many bits are kept. NMI hardly depends on the mean of the entropies
# while clusters and classes are about as even, and a single restart moves it a little either way; most of all it depends on
# chance: much of it is there when the labels are random.
#
# ## The precision-recall curve
#
# Recall@1 looks at one neighbour and MAP@R at R of them. The curve looks at all: how precise is the
# ranking once a share of the class has been found? (Interpolated: the best precision at that recall or a higher one,
# averaged over queries.) Below, recall runs from left to right and precision from bottom to top, a line before training
# and one after. The higher line is the better one; look whether one is above the other everywhere.

# %% mystnb={"image": {"alt": "Precision over recall, before and after training: a curve that stays high for longer is better."}}
test = load_splits(seed=PICTURED_SEED).test
pictured = {
    method: results.embeddings(runs[method, PICTURED_SEED])
    for method in ("frozen_trunk", "norm_softmax")
}
figure, axis = plt.subplots(figsize=(5.5, 3.8))
average_precision = {}
for method, label in {"frozen_trunk": "before training", "norm_softmax": "after"}.items():
    embeddings = pictured[method]
    found = retrieval_metrics(normalize(embeddings), test.labels, ks=(1,), rank_all=True)
    average_precision[label] = 100 * found.means()["average_precision"]
    axis.plot(np.linspace(0, 100, 101), 100 * found.precision_at_recall, label=label)
axis.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 100))
axis.legend()
axis.set_title("NormSoftmax, one replicate")
results.save_figure("precision_recall", figure)
pd.Series(average_precision, name="mAP, %").round(1).to_frame()

# %% [markdown]
# Both curves fall: the more of the class has to be found, the further down the ranking one has to go. On the left a curve
# starts above Recall@1, since a ranking whose first image is wrong still has its best precision later. On the right, where
# even the last image of a class has to be found, it comes down towards the share of the class in the gallery, though it
# stays above. mAP, in the table, is close to the area below the curve.
#
# ## The same embedding in a few bits
#
# NormSoftmax's authors keep one bit of each component, `component > 0`, and rank by the number of bits in which two
# codes differ. Codes of $b$ bits have only $b + 1$ distances, so many items tie, and the score depends on who
# comes first among equals. The *expected* score is the mean over all orders of the ties, in closed form
# (McSherry and Najork, 2008); no order leaves the band between *worst* (other classes first) and *best* (own class first).
#
# Which $b$ bits? The embedding is first rotated at random: that changes no cosine similarity, and any $b$ components
# are then as good as any others. The last line of the table, *own components*, is the paper's own code, all components as they are.

# %%
embeddings = normalize(pictured["norm_softmax"])
dim = embeddings.shape[1]
generator = torch.Generator().manual_seed(PICTURED_SEED)
rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
rotated = binarise(embeddings @ rotation)
lengths = [2**i for i in range(2, dim.bit_length()) if 2**i < dim] + [dim]
codes = {f"{bits} bits": rotated[:, :bits] for bits in lengths} | {
    f"own {dim} components": binarise(embeddings)
}
scored = {name: code_metrics(code, test.labels, ks=(1,)) for name, code in codes.items()}
recall = (
    100
    * pd.DataFrame(
        {
            name: dict(
                zip(("worst", "best"), found.bounds()["recall_at_1"], strict=True),
                expected=found.means()["recall_at_1"],
            )
            for name, found in scored.items()
        }
    ).T[["worst", "expected", "best"]]
)
# A code that is the same for all images leaves the order to chance.
nothing = torch.zeros_like(rotated[:, :1])
chance = 100 * code_metrics(nothing, test.labels, ks=(1,)).means()["recall_at_1"]
cosine = 100 * retrieval_metrics(embeddings, test.labels, ks=(1,)).means()["recall_at_1"]
note = f"Recall@1 in percent; cosine similarity of the floats: {cosine:.1f}, chance: {chance:.1f}."
results.save_table("binary_codes", recall.rename_axis("code").round(1), note)

# %% [markdown]
# As a picture, over the number of bits: dots are the expected Recall@1 and the band reaches from the worst order of ties to the best.
# The cross is the paper's own code. The dashed line is the cosine similarity of the floats that the bits are made from, and the dotted
# one is chance. Look where the band gets narrow, and how far the dots stay below the dashed line.

# %% mystnb={"image": {"alt": "Recall at 1 over the length of binary codes, with a band between best and worst order of ties, beside lines for cosine similarity and for chance."}}
figure, axis = plt.subplots(figsize=(7.5, 3.8))
curve = recall.iloc[:-1]
axis.fill_between(lengths, curve["worst"], curve["best"], alpha=0.2, label="worst to best order")
axis.plot(lengths, curve["expected"], marker="o", label="expected")
axis.plot(
    dim, recall.iloc[-1]["expected"], "x", color="black", ms=9, mew=2, label="the paper's code"
)
axis.axhline(cosine, color="black", linestyle="--", label="cosine similarity")
axis.axhline(chance, color="black", linestyle=":", label="chance")
axis.set_xscale("log", base=2)
axis.set(xlabel="bits", ylabel="Recall@1, %", xticks=lengths, xticklabels=lengths, ylim=(0, 100))
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
results.save_figure("binary_codes", figure)

# %% [markdown]
# The dots rise with the number of bits, towards the cosine similarity.
# At a few bits ties are so many that the band covers most of the scale; with more bits it narrows. Code that leaves the order of
# ties to its sort may report anything in the band, and code that counts ties as right reports its upper edge.
# Quote the expected value, and be careful where the band is wider than the difference of two methods. (These curves are
# made from embeddings kept in 16 bits, so their last digit may differ from the table above.)
#
# ## Clusters and chance
#
# NMI is often reported beside Recall@K. But mutual information grows with the number of clusters even if they mean nothing: with classes of five
# images, as in Stanford Online Products (Song et al., 2016), much of a respectable NMI is there before anything is learned. Below, 2,000 points are
# pure noise, cut into "classes" that mean nothing, and clustered into as many parts.

# %%
generator = torch.Generator().manual_seed(0)
noise = normalize(torch.randn(2000, 16, generator=generator))
by_chance = {}
for per_class in (100, 50, 20, 10, 5):
    labels = torch.arange(2000) // per_class
    found = clustering_metrics(noise, labels, iterations=5, restarts=1)
    by_chance[per_class] = {name: 100 * found[name] for name in ("nmi_arithmetic", "ami")}
by_chance = pd.DataFrame(by_chance).T.rename_axis("images per class").round(1) + 0.0
results.save_table(
    "clustering_by_chance", by_chance, "Percent, of points without any classes.", of_data=False
)

# %% [markdown]
# AMI takes out what chance gives, so it can be compared between data sets; NMI cannot, and its chance level belongs beside it.
#
# ## How wide must an interval be?
#
# Two methods were tested on the same class splits, three to ten times, and the second is better by a point. Would a second
# experiment, with other seeds and *other classes*, say so too? An interval of 95 % promises to hold the true difference in 95 of 100 such
# experiments. Whether it keeps the promise cannot be seen in a real experiment, whose truth nobody knows. So we make
# experiments up ([`simulation.py`](../dmlkit/simulation.py)): the score of a query is the sum of the method's true mean, a part that
# belongs to the class, one that belongs to the replicate (class split and seed), one that belongs to this class in this
# replicate, and the query's own noise.
#
# How large are these parts? The committed runs of chapter 2 tell, for differences of Recall@1 between two trained losses on photographs of birds,
# CUB-200 (Welinder et al., 2010). In points of percent, the standard deviations of a replicate, and of a class within one replicate (which the class,
# this class in this replicate, and the noise of its ten or so queries share):


# %%
def pilot(profile, method):
    """Return the results by class of a method in the committed runs, replicate by replicate."""
    folder = PROJECT_ROOT / "results" / profile / "02_baseline_losses"
    made = pd.read_csv(folder / "runs.csv").query("method == @method").sort_values("seed")
    return [read_scores(folder / "runs" / f"{run_id}.npz") for run_id in made["run_id"]]


def class_spread(first, second):
    """Return the standard deviation over classes of a difference of Recall@1, in one replicate."""
    found = [
        pd.Series(a["recall_at_1"] - b["recall_at_1"]).groupby(a["labels"]).mean().std()
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(found))


pilots = ("contrastive", "multi_similarity", "norm_softmax")
spreads = [
    {
        "profile": profile,
        "difference": f"{a} − {b}",
        "replicate": sqrt(paired_difference(first, second, "recall_at_1").between),
        "class": class_spread(first, second),
    }
    for profile in ("features", "birds")
    for a, b in combinations(pilots, 2)
    for first, second in [(pilot(profile, a), pilot(profile, b))]
]
pd.DataFrame(spreads).set_index(["profile", "difference"]).mul(100).round(1)

# %% [markdown]
# The made-up difference has parts of that order. There are three ways to repeat an experiment. The replicates may each have
# *new classes*, as on drawn data; test *random halves* of 200 classes, as here with `PROTOCOL = "random"`; or test the
# *same classes* and change the seed alone, as papers do.

# %% [markdown]
# Three intervals. *Seeds alone* is the textbook t interval over the replicates. *Classes alone* resamples the test classes, as a
# bootstrap does that forgets that training again gives another result. *This book's* adds both parts: the variance between
# replicates over their number, and their covariance through the classes that they share, estimated as for two-way clusters
# (Cameron, Gelbach and Miller, 2011); classes are resampled with all their queries in all replicates (Owen, 2007). The code is
# [`intervals.py`](../dmlkit/intervals.py). How often, in percent, does each hold the truth?

# %%
TRUTH = 0.01
SPREAD = {"class": 0.06, "replicate": 0.012, "both": 0.04, "query": 0.3}  # of a difference


def draw(mean, splits):
    """Return made-up scores of a method, replicate by replicate."""
    return draw_scores(mean, splits, SPREAD, generator)


def subtract(first, second):
    """Return the per-query differences of two methods, replicate by replicate."""
    return [a | {"score": a["score"] - b["score"]} for a, b in zip(first, second, strict=True)]


def classes_alone(differences, draws=200):
    """Return an interval from resampled classes: each one's sum over replicates, once."""
    of_class = {}
    for replicate in differences:
        means = pd.Series(replicate["score"]).groupby(replicate["labels"]).mean()
        for name, mean in zip(replicate["classes"].tolist(), means, strict=True):
            of_class.setdefault(name, []).append(mean)
    sums, times = np.array([(sum(means), len(means)) for means in of_class.values()]).T
    drawn = generator.integers(len(sums), size=(draws, len(sums)))
    return np.quantile(sums[drawn].sum(axis=1) / times[drawn].sum(axis=1), [0.025, 0.975])


generator, coverage = np.random.default_rng(0), []
for scheme, n in product(SCHEMES, (3, 5, 10)):
    hits = []
    for _ in range(SIMULATIONS):
        splits = draw_splits(scheme, n, 100, generator)
        differences = subtract(draw(0.6 + TRUTH, splits), draw(0.6, splits))
        found = estimate(differences, "score", draws=400)
        intervals = {
            "seeds alone": found.t_interval(),
            "classes alone": classes_alone(differences),
            "this book's": found.interval(),
        }
        hits.append({name: low <= TRUTH <= high for name, (low, high) in intervals.items()})
    coverage.append({"replicates": scheme, "n": n, **(100 * pd.DataFrame(hits).mean()).round(1)})
coverage = pd.DataFrame(coverage).set_index(["replicates", "n"])
error = 100 * sqrt(0.0475 / SIMULATIONS)
note = f"{SIMULATIONS} made-up experiments a line, so that 95 would vary by ±{error:.1f}."
if SIMULATIONS < 200:
    note += " Too few to say anything: raise SIMULATIONS."
results.save_table("coverage", coverage, note, of_data=False)

# %% [markdown]
# The same numbers as a picture: a panel for each of the three ways to repeat an experiment, a colour for each kind of interval, the number
# of replicates from left to right. A line on the dashed one, at 95 %, keeps its promise; one below it promises too much. Look which lines
# stay near 95 % in all three panels, and what more replicates do to the others.

# %% mystnb={"image": {"alt": "How often each kind of interval contains the truth, over the number of replicates, beside a line at 95 percent."}}
drawn = coverage.reset_index().melt(["replicates", "n"], var_name="interval", value_name="coverage")
with plt.rc_context({"figure.constrained_layout.use": False}):  # the grid lays itself out
    grid = sns.relplot(
        drawn,
        x="n",
        y="coverage",
        hue="interval",
        style="interval",
        col="replicates",
        kind="line",
        markers=True,
        dashes=False,
        height=3.2,
        alpha=0.8,
    )
grid.refline(y=95, color="black")
grid.set(xticks=[3, 5, 10], xlabel="replicates", ylabel="contains the truth, %")
grid.set(ylim=(min(75, drawn["coverage"].min() - 2), 101))
grid.set_titles("{col_name}")
results.save_figure("coverage", grid.figure, of_data=False)

# %% [markdown]
# Only this book's interval stays near the dashed line, or above it, in all three panels. Seeds alone are right where every
# replicate has new classes, and say nothing about other classes where it has not: on the
# same test classes the interval fails, and more so with every seed that is added, because it shrinks towards the wrong
# place. Classes alone forget that training again gives another result, and are too low everywhere. How badly either fails depends on how much the
# difference varies between classes; *try this* below changes it.
#
# ## False verdicts when nothing differs
#
# Six methods against one reference, none better or worse, each claimed to be better: how often, in percent, does the list of
# verdicts hold at least one false one? Holm's correction (Holm, 1979) multiplies each p value by the number of claims
# still open, least p first, and allows 5 of 100. Where splits overlap, verdicts in this book also need a second, wider interval
# (Nadeau and Bengio, 2003), because random halves share training classes too; without it, as here, the test is at its least strict.

# %%
false = []
for scheme in SCHEMES:
    hits = []
    for _ in range(SIMULATIONS):
        splits = draw_splits(scheme, 5, 100, generator)
        reference = draw(0.6, splits)
        found = [
            estimate(subtract(draw(0.6, splits), reference), "score", draws=400) for _ in range(6)
        ]
        seeds_alone = [2 * stats.t.sf(abs(d.mean) / sqrt(d.between / d.n), d.n - 1) for d in found]
        ours = [p_value(d, "greater", 0.01) for d in found]
        p_values = {"seeds alone": seeds_alone, "this book's": ours}
        hits.append({name: min(holm(p)) < 0.05 for name, p in p_values.items()})
    false.append({"replicates": scheme, **(100 * pd.DataFrame(hits).mean()).round(1)})
false = pd.DataFrame(false).set_index("replicates")
note = f"{SIMULATIONS} lists a line, 5 replicates; 5 would vary by ±{error:.1f}."
results.save_table("false_verdicts", false, note, of_data=False)

# %% [markdown]
# Holm's correction keeps its word for independent claims; here all six share the reference, so less than 5 is
# expected. Seeds alone err more often the more classes the replicates share.
#
# ## What can we hope to see?
#
# Before a run, its results cannot be known, but the smallest difference that it would find can: the one that a test at
# 5 % finds four times in five (before Holm's correction). The committed runs of chapter 2 serve as pilots: how much the differences of its three
# better losses vary between replicates and classes tells what n replicates would resolve. More replicates shrink the first
# part only; ∞ is what 200 classes of photographs cannot resolve however often they are split (drawn species never run out). A
# pilot is a rough guess: a spread estimated from five values is itself off by a third, from three by half. In points
# of percent, the median of three pairs of losses:

# %%
planned = (3, 5, 10, 20, inf)
titles = {"recall_at_1": "R@1", "map_at_r": "MAP@R"}
detectable = {}
for profile, metric in product(("mini", "features", "birds"), titles):
    overlap = 0.0 if profile == "mini" else 1.0  # each drawn replicate has species of its own
    found = [
        paired_difference(pilot(profile, a), pilot(profile, b), metric, overlap=overlap)
        for a, b in combinations(pilots, 2)
    ]
    detectable[profile, titles[metric]] = {
        f"n = {n}".replace("inf", "∞"): 100 * np.median([d.detectable(n) for d in found])
        for n in planned
    }
detectable = pd.DataFrame(detectable).T.rename_axis(["profile", "metric"])
results.save_table("detectable", detectable.round(2), of_data=False)

# %% [markdown]
# And the differences that the papers published, those of the list of claims ([`claims.csv`](claims.csv)) that name one. From how
# many replicates on would a true difference of that *size* be found here, four times in five? (A claim that two things are equal
# needs differences of the size of its bound to be visible. The pilots compare losses; we assume that other
# differences vary as these do.)

# %%
claims = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
claims["points"] = claims["published"].str.extract(r"^([+-]?\d+\.?\d*)")[0].astype(float)
claims = claims.dropna(subset="points")
sizes = claims["points"].abs().where(claims["direction"] == "greater", 100 * claims["delta"])
power = claims[["claim", "statement"]].assign(
    published=claims["points"].map("{:+.1f}".format),
    metric=claims["metric"].map(titles),
    size=sizes.round(1),
)
for profile in ("features", "birds"):
    enough = [
        next(
            (name for name, points in detectable.loc[profile, metric].items() if points <= size),
            "never",
        )
        for metric, size in zip(power["metric"], sizes, strict=True)
    ]
    tested = claims["rungs"].str.split().map(lambda rungs, profile=profile: profile in rungs)
    power[profile] = pd.Series(enough, power.index).where(tested, "not tested")
power = power[(power[["features", "birds"]] != "not tested").any(axis=1)]
results.save_table("power", power.set_index("claim"), of_data=False)

# %% [markdown]
# *Never* does not mean that the claim is wrong: if the true difference is no larger than the size in this line, no number of splits of
# these classes finds it four times in five. A larger one can still be found, as chapter 2 finds of semi-hard triplets. Many a published
# step, from one run on one split, is of a size that nothing here would see.
#
# ## What exact evaluation costs
#
# Every query is compared with every item: N x M x D multiply-adds, and the rest grows only with N x M. The ranking itself is done in
# float32, and only where two scores lie closer than the rounding error are they computed again, in float64, so the
# result is exact at the price of the matrix product. (The price is several times higher where nearly everything
# ties, and for mAP, which ranks all.) Measured beside other libraries: [metrics.md](../results/benchmarks/metrics.md).

# %%
sizes = {
    "CUB-200-2011": (5924, 5924),
    "Cars-196": (8131, 8131),
    "In-Shop": (14218, 12612),
    "Stanford Online Products": (60502, 60502),
    "a million images": (10**6, 10**6),
    "a hundred million images": (10**8, 10**8),
}
cost = pd.DataFrame(sizes, index=["queries", "gallery"]).T
cost["10^12 multiply-adds, D = 512"] = cost["queries"] * cost["gallery"] * 512 / 1e12
cost["similarities, GB"] = cost["queries"] * cost["gallery"] * 4 / 1e9
cost["embeddings, GB"] = cost["gallery"] * 512 * 4 / 1e9
cost.map(lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")

# %% [markdown]
# All similarities of Stanford Online Products would take 15 GB, which is why other code runs out of memory; in pieces
# they take as much as one allows (`memory_mib`). At a hundred million images the product alone is 5 x 10^18 multiply-adds,
# an hour or so of a hundred large GPUs, and nobody needs it: the mean over a random sample of 10,000 queries, each searched
# exactly, has a standard error of at most half a point ($0.5/\sqrt{10^4}$ for a share) and costs a ten-thousandth. The
# gallery must not be thinned, since that changes the question, as the protocols above show; it can be spread over machines, each of which returns its
# best R per query. Approximate search (inverted lists, graphs) comes last: its misses count as the model's, so its own recall belongs beside the result.
#
# ## What this shows, and what not
#
# The rules of older code agree with this book's on the Recall@1 of a healthy float embedding and part company where it
# matters: collapsed embeddings, duplicates, and codes. What moves a number most is the protocol: number of classes,
# galleries, bits, chance. So the chapters compare only what was scored by one rule on the same classes.
#
# The intervals hold what they promise when the made-up experiments resemble the real ones, which means: classes, replicates and queries vary
# independently. They say nothing about a data set's bias. What they cannot see in random halves of one set, the training
# classes that splits share, is why verdicts there need a second interval.
#
# **Try this.** Set `SPREAD["class"] = 0.0` and run the two cells on intervals again: when are seeds alone enough? Set `EMBEDDING_DIM = 16`
# and look at the band of the binary codes.
