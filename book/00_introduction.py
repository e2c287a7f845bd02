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
# # 0. Introduction
#
# You have a photograph of a bird and a shelf of a hundred thousand others. Which of them show the same species? Nobody has
# trained a network on that species; perhaps nobody has named it. *Metric learning* trains a network so that this question has an
# answer: it maps every image to a point, such that images of one kind lie close together, also for kinds it has never seen.
#
# This chapter is for readers who know PyTorch and nothing of this field. It shows
#
# 1. what metric learning is for, and why a classifier does not do it;
# 2. the whole of it in one screen: data, network, loss, training, search;
# 3. the data of the book, and what a class-disjoint split is;
# 4. the metrics, on one query, by hand;
# 5. how to read a table of this book: intervals, replicates, verdicts, profiles;
# 6. which chapter answers which question;
# 7. how to save a model and search a folder of your own images;
# 8. things to try, and a glossary of the words in *italics*.
#
# It teaches on birds that this book draws itself, under every profile, because they need no download and may be shown. To run it
# on other images, set `DATASET`.

# %% tags=["parameters"]
DATASET: str = "aviary"  # images: aviary or butterflies (drawn), or one that `dmlkit data` lists
DATA_DIR: str = "data"  # folder that holds real data sets, from the project root
MAX_CLASSES: int = 0  # use only the first classes, for a quick look (half of them test); 0: all
MAX_IMAGES_PER_CLASS: int = 0  # use only the first images of each class; 0: all
PROTOCOL: str = "random"  # classes: redrawn per seed (random), official, or halves (reality_check)
SELECTION: str = "validation"  # step chosen on held-out training classes, or the last one (last)
SEEDS: list = [0, 1, 2]  # replicates whose classes are pictured; the first is trained on
TRUNK: str = "small_convnet"  # network: small_convnet, mobilenet_v2, bn_inception, googlenet or resnet50  # fmt: skip
WEIGHTS: str = "none"  # initial weights: none, imagenet, or a path; small_convnet starts from none
INPUT_CONVENTION: str = "torchvision"  # normalisation of inputs: torchvision, tensorflow or caffe
FREEZE_BN: bool = False  # keep the statistics of batch norms fixed
IMAGE_SIZE: int = 48  # side of the images the trunk sees, pixels
CACHE_SIZE: int = 48  # side at which images are kept; test images are centre-cropped from it
SHORT_SIDE: int = 0  # above 0: crop from photographs resized to this shorter side; 0: from squares
CROP_SCALE: list = [0.5, 1.0]  # area of a random training crop, as a share of the image
EMBEDDING_DIM: int = 64  # size of an embedding, D
STEPS: int = 160  # optimiser steps
MEASURE_EVERY: int = 20  # steps between points of the learning curve
BATCH_SIZE: int = 64  # images per step
IMAGES_PER_CLASS: int = 4  # images of each class in a batch
LEARNING_RATE: float = 0.001  # Adam's, for trunk and head
DEVICE: str = "auto"  # auto (a GPU if there is one), cpu or cuda
PRECISION: str = "float32"  # float32, or bfloat16 for automatic mixed precision
NUM_THREADS: int = 1  # CPU threads; results on a CPU depend on it
RESUME: bool = True  # do not execute the chapter again where nothing has changed
RESULTS_DIR: str = "results/local/mini"  # where results go, from the project root

# %%
from functools import partial
from shutil import rmtree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from PIL import Image
from torch.optim import Adam

from dmlkit.batches import image_batches
from dmlkit.claims import holm, p_equivalent, p_value, verdict
from dmlkit.datasets import PICTURES_MAY_BE_SHOWN, READERS, ImageSet, load, split_classes
from dmlkit.evaluation import embed, evaluate
from dmlkit.gallery import index_folder, load_gallery, save_gallery
from dmlkit.intervals import class_means, estimate, paired_difference
from dmlkit.losses import ContrastiveLoss
from dmlkit.metrics import retrieval_metrics
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.plots import (
    differences,
    image_grid,
    learning_curves,
    lines,
    nearest_neighbours,
    set_style,
    spread_queries,
)
from dmlkit.results import ChapterResults
from dmlkit.samplers import MPerClassSampler
from dmlkit.saving import load_model, save_model
from dmlkit.seeding import derive_seed, set_seed
from dmlkit.simulation import SCHEMES, draw_scores, draw_splits
from dmlkit.tables import summarise
from dmlkit.training import choose_device, fit
from dmlkit.transforms import RandomResizedCropFlip, centre_crop

results = ChapterResults("00_introduction", globals())
device = choose_device(DEVICE)
set_style()
save_pictures = partial(results.save_figure, keep_local=DATASET not in PICTURES_MAY_BE_SHOWN)

# %% [markdown]
# ## 1. What it is for
#
# Below, each row is a small search. Left the *query*; to its right six candidates, of which two are of the query's species. Which?
# (Look at bill, crest, tail and wing bars; pose, light and background say nothing.)

# %% tags=["pictures"] mystnb={"image": {"alt": "Three query birds, each with six candidates a to f of which two are of its species."}}
load_splits = partial(
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
splits = load_splits(seed=SEEDS[0])
test = splits.test
generator = torch.Generator().manual_seed(0)
queries, candidates = [], []
for species in range(min(3, test.num_classes)):
    own = (test.labels == species).nonzero().squeeze(1)
    others = (test.labels != species).nonzero().squeeze(1)
    others = others[torch.randperm(len(others), generator=generator)]
    six = torch.cat([own[1:3], others])[:6]
    queries.append(own[0])
    candidates.append(six[torch.randperm(len(six), generator=generator)])
queries, candidates = torch.stack(queries), torch.stack(candidates)
shown = torch.cat([queries[:, None], candidates], dim=1)
images = torch.stack([test.gather(row) for row in shown]) / 255
save_pictures("question", image_grid(images, ["query", *"abcdef"][: images.shape[1]]))

# %% [markdown]
# The answer: the same rows again. The query has a black frame; a green frame and a tick mark the candidates of its species, an orange frame and a
# cross the others. Look at what the two right ones share with the query.

# %% tags=["pictures"] mystnb={"image": {"alt": "The same rows, with a tick below the candidates of the query's species and a cross below the others."}}
figure = nearest_neighbours(test, candidates, queries)
for axis, letter in zip(figure.axes[1:], "abcdef"[: candidates.shape[1]], strict=False):
    axis.set_title(letter, fontsize=9)
save_pictures("answer", figure)

# %% [markdown]
# The right ones share plumage and shape with the query, often in another pose and on another background; a wrong one may well have the query's
# colours or background. You have just done *open-set retrieval*: the species were new to you, and yet you could compare. The outputs of a classifier
# cannot. They are the classes it was trained on, and it will call a new bird by the name of one of them. (Its features, one layer below, can: they
# are where many methods of this book begin.) It would have to be trained again for each new species, and most collections (products, faces, whales,
# parts of machines) grow faster than anybody can label them.
#
# So we do not ask for names. We ask for a map, the *embedding*, from images to points, and train it on species we have labels
# for. To search is then to look for the nearest points. New images, new species and new collections need no new training.
#
# ## 2. The whole of it in one screen
#
# - The **network** is a *trunk* (a convolutional network up to its pooled features) and a *head* (a linear map to `EMBEDDING_DIM` numbers, then
#   scaled to length 1). The product of two such vectors is the cosine of the angle between them: 1 for the same direction, 0 for a right angle.
# - A **batch** holds `IMAGES_PER_CLASS` images of each of a few species, because the loss needs pairs of one species.
# - The **loss** here is the *contrastive* one, one of the oldest (Hadsell, Chopra and LeCun, 2006). With $d$ the distance between two points, it
#   pulls pairs of one species together (the cost is $d$) and pushes other pairs apart until they are at distance 1 (the cost is $1 - d$, or 0 beyond;
#   the paper squares both costs). [Chapter 2](02_baseline_losses.ipynb) has 25 others.
# - The **training loop** is [`fit`](../dmlkit/training.py), a plain PyTorch loop, the same for every method of the book. It now and then measures
#   retrieval on species held out for that, and keeps the weights of the best step.
#
# `weights` are random to begin with: nothing has been learned anywhere else.


# %%
def new_model(embedding_dim):
    """Return an untrained model, the same each time."""
    set_seed(SEEDS[0], num_threads=NUM_THREADS)
    weights = "none" if TRUNK == "small_convnet" else WEIGHTS
    look = {"convention": INPUT_CONVENTION, "freeze_batch_norm": FREEZE_BN}
    trunk = make_trunk(TRUNK, weights=weights, **look)
    return EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, embedding_dim)).to(device)


def train(model, birds, batch_size, steps, validate=None):
    """Train a model on an image set and return how training went."""
    sampler = MPerClassSampler(
        birds.labels,
        batch_size=batch_size,
        images_per_class=IMAGES_PER_CLASS,
        seed=derive_seed(SEEDS[0], "sampler"),
    )
    augment = RandomResizedCropFlip(
        IMAGE_SIZE, scale=CROP_SCALE, seed=derive_seed(SEEDS[0], "views")
    )
    batches = image_batches(birds, sampler, augment, device)  # (images, labels), without end
    loss_fn = ContrastiveLoss()
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE)
    how = {"validate": validate, "measure_every": MEASURE_EVERY, "precision": PRECISION}
    fitted = fit([model], batches, lambda b: loss_fn(model(b[0]), b[1]), optimizer, steps, **how)
    model.load_state_dict(fitted.best_states[0])
    return fitted


# %% [markdown]
# Now embed the images of test species before training, train, and embed them again. Each test image in turn is a query, and all the others are
# ranked by their similarity to it.

# %%
plain_view = partial(centre_crop, image_size=IMAGE_SIZE)
measure = partial(evaluate, transform=plain_view, device=device, ks=(1,))
untrained = new_model(EMBEDDING_DIM)
before = measure(untrained, test)

model = new_model(EMBEDDING_DIM)
held_out = splits.validation
validate = None if held_out is None else lambda: measure(model, held_out).metrics
fitted = train(model, splits.train, BATCH_SIZE, STEPS, validate)
after = measure(model, test)

relevant = test.labels.bincount()[test.labels] - 1  # other images of each one's species
guessing = (relevant[relevant > 0] / (len(test) - 1)).mean().item()
shares = {
    "guessing": guessing,
    "before training": before.metrics["recall_at_1"],
    "after training": after.metrics["recall_at_1"],
}
first = pd.DataFrame({"nearest image is of the query's species, %": shares}).mul(100).round(1)
results.save_table("before_and_after", first.rename_axis("network"))

# %% [markdown]
# The species in this table were never trained on. What has been learned from others carries over: not the birds themselves, but what tells birds
# apart and what does not. The next figure follows training, from left to right in images seen. Its left panel shows the loss, relative to its first
# value; the right one, where species are held out for it, a measure of retrieval on these (MAP@R, section 4). Look whether the two move together.

# %% mystnb={"image": {"alt": "The training loss falls and retrieval of held-out species rises with the images seen."}}
curve = pd.DataFrame({"method": ["contrastive"], "history": [fitted.history]})
results.save_figure("learning_curve", learning_curves(curve, ["contrastive"]))

# %% [markdown]
# Retrieval rises a lot while the loss falls little: the loss is a mean over those pairs that still cost something, and these become fewer and harder.
# So its value alone does not say how good an embedding is.
#
# The same queries before and after. The first column is the query; then come its nearest images, right (✓) or wrong (✗). Half of the queries
# are ones that the trained network answers rightly at rank 1, half are not, so the picture shows neither the best nor the worst on purpose. First before training:

# %% tags=["pictures"] mystnb={"image": {"alt": "Four queries and their six nearest images before training, most of another species."}}
picked = spread_queries(after.retrieval.per_query["recall_at_1"].numpy(), 4)
asked = after.retrieval.queries[picked]
save_pictures(
    "neighbours_before", nearest_neighbours(test, before.retrieval.neighbours[picked], asked)
)

# %% [markdown]
# And after training, the same queries in the same order. Compare row by row: what do the neighbours share with the query now, and what did they share
# before?

# %% tags=["pictures"] mystnb={"image": {"alt": "The same queries and their six nearest images after training, more of them of the query's species."}}
save_pictures(
    "neighbours_after", nearest_neighbours(test, after.retrieval.neighbours[picked], asked)
)

# %% [markdown]
# Before training, what counts is what fills the picture: background, light, where the bird sits. After training, what counts is closer to what makes
# a species, and where the network errs, look at the bird it took: often you would have hesitated, too.
#
# ### What training moves
#
# `EMBEDDING_DIM` numbers cannot be drawn, but two can. Here a second network has an embedding of D = 2: a direction in the plane, an angle. It is
# trained on six training species only, and we look at these same six. Each ring (and colour) is a species and each dot an image; what matters is the
# angle, and the rings only keep the species apart for the eye.

# %% mystnb={"image": {"alt": "Angles of the embeddings of six species, scattered or all alike before training and gathered by species after."}}
six = splits.train.keep_classes(torch.arange(min(6, splits.train.num_classes)))
plane = new_model(2)
angles = {"before training": embed(plane, six, plain_view, device=device)}
train(plane, six, six.num_classes * IMAGES_PER_CLASS, STEPS)
angles["after training"] = embed(plane, six, plain_view, device=device)
figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), subplot_kw={"projection": "polar"})
for axis, (title, points) in zip(axes, angles.items(), strict=True):
    for species in range(six.num_classes):
        of_species = points[six.labels == species]
        theta = torch.atan2(of_species[:, 1], of_species[:, 0])
        axis.scatter(theta, torch.full_like(theta, 3 + species), s=22, alpha=0.7)
    axis.set(title=title, yticks=[], ylim=(0, 3 + six.num_classes), xlabel="angle, degrees")
results.save_figure("circle", figure)

# %% [markdown]
# Before training, all images point more or less the same way, whatever the species. Training turns those of one species towards each other and the species away from
# each other, as far as a circle has room. That is all that any loss of this book does; they differ in which pairs they look at and how hard they pull.
#
# ## 3. The data, and what a split is
#
# A test on images of *species that were trained on* would only show what a classifier can do. So the species are divided:
# *training* species, *validation* species (held out of the training half, to choose when to stop) and *test* species, which choose
# nothing. No species is in two parts. One division with one random seed is a *replicate*.
#
# A row below is a part of a replicate, and each of its images shows another species of that part. Look for a species that stands in two rows.

# %% tags=["pictures"] mystnb={"image": {"alt": "Images of training, validation and test species of two replicates; no two species are the same."}}
parts = {}
for seed in SEEDS[:2]:
    of_seed = load_splits(seed=seed)
    for name in ("train", "validation", "test"):
        if (part := getattr(of_seed, name)) is not None:
            parts[f"{name}, replicate {seed}"] = part
columns = min(6, *(part.num_classes for part in parts.values()))
one_each = [
    part.gather(torch.stack([(part.labels == c).nonzero()[0, 0] for c in range(columns)]))
    for part in parts.values()
]
figure = image_grid(torch.stack(one_each) / 255, [""] * columns)
figure.set_figwidth(figure.get_figwidth() + 2)  # room for the names
for axis, name in zip(figure.axes[::columns], parts, strict=True):
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
save_pictures("splits", figure)

# %% [markdown]
# Within a replicate no species is in two parts. Of drawn birds none is in two rows at all: every replicate has new species, and nobody has seen those
# of replicate 1 in replicate 0.
#
# Of photographs there are only so many species, 200 in CUB-200 (Welinder et al., 2010). There a replicate divides the *same* species anew, at random.
# With 20 species in place of 200, four replicates look like this (made by the same [`split_classes`](../dmlkit/datasets/splitting.py) that the
# chapters use). A row is a replicate, a column a species, and the colour says in which part the species is:

# %% mystnb={"image": {"alt": "Four replicates of 20 species, each species coloured as training, validation or test; the colours differ between replicates."}}
species = torch.arange(20)
toy = ImageSet(torch.zeros(20, 3, 1, 1), species, tuple(map(str, range(20))), "", species)
roles = np.zeros((4, 20))
for replicate in range(4):
    divided = split_classes(toy, 10, protocol="random", seed=replicate, validation_fraction=0.2)
    for number, part in enumerate((divided.train, divided.validation, divided.test)):
        roles[replicate, [int(name) for name in part.class_names]] = number
colours = sns.color_palette("colorblind", 3)
figure, axis = plt.subplots(figsize=(8, 2.2))
sns.heatmap(roles, cmap=colours, linewidths=1, cbar=False, ax=axis)
axis.set(xlabel="species (number)", ylabel="replicate")
legend = ("training", "validation", "test")
handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
figure.legend(handles, legend, loc="outside upper center", ncols=3)
results.save_figure("class_splits", figure, of_data=False)

# %% [markdown]
# Read a column: the species is tested in some replicates and trained on in others. Replicates of photographs therefore share species, and are not quite
# independent of each other. Section 5 comes back to that.
#
# The data sets that this book reads, with what is published of each; the first two are drawn here. Those that are not there yet,
# `dmlkit data` tells where to get. A dash stands where no split is published: three sets are pools of images that are used without labels, and the last two are your own.

# %%
drawn = {
    name: {
        "what": f"drawn here, new species for each replicate: {name}",
        "train": "50",
        "test": "50",
    }
    for name in ("aviary", "butterflies")
}
real = {
    name: {
        "what": reader.ABOUT.title,
        "train": str(reader.ABOUT.published.get("train", ("", "–"))[1]),
        "test": str(
            reader.ABOUT.published.get("test", reader.ABOUT.published.get("query", ("", "–")))[1]
        ),
    }
    for name, reader in READERS.items()
}
data_sets = pd.DataFrame(drawn | real).T.rename_axis("DATASET")
data_sets = data_sets.rename(columns={"train": "training classes", "test": "test classes"})
results.save_table("data_sets", data_sets, of_data=False)

# %% [markdown]
# ## 4. The metrics, on one query, by hand
#
# Take five images of each of three test species, and one of these fifteen as the query. The trained network ranks the other fourteen. How good is the
# ranking? Below are the query and the first ten of its ranking, best first, right (✓) or wrong (✗). Is the first one right, and how early do right
# ones come?

# %% tags=["pictures"] mystnb={"image": {"alt": "A query and the first images of its ranking, each with a tick or a cross."}}
few = torch.cat(
    [(test.labels == c).nonzero().squeeze(1)[:5] for c in range(min(3, test.num_classes))]
)
labels = test.labels[few]
found = retrieval_metrics(after.embeddings[few], labels, ks=(1, 2), num_neighbours=len(few) - 1)
row = (found.per_query["map_at_r"] - 0.4).abs().argmin()  # neither perfect nor hopeless
query, ranking = found.queries[row], found.neighbours[row]
save_pictures("ranking", nearest_neighbours(test, few[ranking][None], few[query][None], count=10))

# %% [markdown]
# The ranking is neither perfect nor hopeless: right and wrong images are mixed. Four others of the query's species could be found, and R stands for
# that number: the number of images that could be right. Walk down the ranking as far as rank R, and note at each rank how many have been right so
# far. The share of right ones up to a rank is the *precision* there.

# %%
is_right = (labels[ranking] == labels[query]).tolist()
r = sum(is_right)
walk = pd.DataFrame(
    {
        "right?": ["✓" if right else "✗" for right in is_right[:r]],
        "right so far": [sum(is_right[:rank]) for rank in range(1, r + 1)],
        "precision": [f"{sum(is_right[:rank])}/{rank}" for rank in range(1, r + 1)],
    },
    index=pd.RangeIndex(1, r + 1, name="rank"),
)
results.save_table("walk", walk, f"R = {r}.")

# %% [markdown]
# - **Recall@K** (R@K): is at least one of the first K right? 1 or 0. R@1 asks for the nearest image alone.
# - **R-precision** (RP): the precision at rank R. A perfect ranking has all R right ones there, which is 1.
# - **MAP@R** (Musgrave et al., 2020): add the precision at those ranks up to R that hold a right image, and divide by R. Like RP, but a right image
#   counts more the earlier it comes.
#
# With the numbers of the table, and beside them what [`dmlkit.metrics`](../dmlkit/metrics/retrieval.py) computes:

# %%
precisions = [sum(is_right[:rank]) / rank for rank in range(1, r + 1) if is_right[rank - 1]]
hand = {
    "recall_at_1": float(any(is_right[:1])),
    "recall_at_2": float(any(is_right[:2])),
    "r_precision": sum(is_right[:r]) / r,
    "map_at_r": sum(precisions) / r,
}
computed = {name: found.per_query[name][row].item() for name in hand}
assert all(abs(hand[name] - computed[name]) < 1e-6 for name in hand)
by_hand = pd.DataFrame({"by hand": hand, "dmlkit.metrics": computed}).round(3)
results.save_table("by_hand", by_hand.rename_axis("metric"))

# %% [markdown]
# A table of this book holds the means over all queries, in percent. Two more rules belong to it: a query is never its own answer, and if two images are
# equally similar, the wrong one counts as first (for codes of bits, where ties are many, chapter 3 takes the mean over their orders). [Chapter 1](01_evaluation.ipynb) shows what happens in code that has other rules, and what clustering metrics (NMI and
# AMI) are.
#
# ## 5. How to read a table
#
# The network of section 2, before and after training, as two lines of a table like those of the later chapters:

# %%
scores = {
    name: class_means(
        {metric: values.numpy() for metric, values in of.retrieval.per_query.items()}
        | {"labels": of.retrieval.labels.numpy(), "classes": np.array(test.class_names)}
    )
    for name, of in {"untrained": before, "contrastive": after}.items()
}
rows = pd.DataFrame(
    {
        "method": list(scores),
        "run_id": list(scores),
        "steps": [0, STEPS],
        "seconds": [0, fitted.seconds],
    }
)
results.save_table("main", summarise(rows, scores, list(scores)))

# %% [markdown]
# **Brackets** are intervals of 95 %, made such that they hold the true value (of all species that could have been drawn) in 95 of 100 experiments.
# What makes a mean uncertain? One thing is the species. Here is R@1 of each test species by itself: a dot is a species, from the hardest on the left
# to the easiest on the right, the line is the mean over species, and the band is its interval. Look how far the dots are from the line.

# %% mystnb={"image": {"alt": "Recall at 1 of each test species, sorted, from a few percent to nearly all; the mean and its interval as a line and a band."}}
of_species = np.sort(100 * scores["contrastive"]["recall_at_1"])
recall = estimate([scores["contrastive"]], "recall_at_1")
figure, axis = plt.subplots(figsize=(7, 3.2))
axis.scatter(range(1, len(of_species) + 1), of_species, s=18)
axis.axhline(100 * recall.mean, color="C1", label="mean")
low, high = recall.interval()
axis.axhspan(100 * low, 100 * high, color="C1", alpha=0.2, label="95 % interval")
axis.set(xlabel="test species, sorted", ylabel="R@1, %", ylim=(-3, 103))
figure.legend(loc="outside upper right", ncols=2)
results.save_figure("by_species", figure)

# %% [markdown]
# Some species are easy and some are not. Many dots lie outside of the band, since it is an interval of the mean and not of a species. So the mean
# depends on which ones happen to be tested. The other thing is training: another split and another seed give another network. One replicate cannot
# show that, so the interval here leaves it out, and is too narrow. The chapters train several: **n** is their number.
#
# **Selection.** Training too long or too short changes a result, and so do learning rates and margins. Whoever chooses them by a look at the test species
# has a better number and no better method. Here the step is chosen on validation species (`SELECTION`), and settings by a search on them.
#
# **The same budget** means that all methods of a table see as many images with the same network, batches and augmentation. **The same search** means that each
# gets as many tries at its settings, by the same rule. A method that is tuned beats one that is not; that says nothing about the methods.
#
# **Profiles** (also called *rungs*, as of a ladder) are the scales at which the chapters run. Each can show some things and not others:
#
# | profile | data and network | can show | cannot show |
# |---|---|---|---|
# | `smoke` | a few drawn birds, a few steps | that everything executes | anything else |
# | `mini`, `full` | drawn birds, a small network from scratch | how a comparison is made, and what a method does in a world whose truth we know | anything about photographs |
# | `omniglot` | handwritten characters (Lake et al., 2015), the small network | the same on drawings by people, in alphabets never seen | anything about photographs |
# | `features` | photographs of birds, a frozen network and a trained head, ten replicates | differences of one to two points between losses, where only the head learns | what they do when the whole network learns |
# | `birds` | photographs of birds, a whole small network, five replicates | large differences between losses on photographs | small differences; anything about the papers' own networks |
# | `paper` | the papers' data, networks and schedules | whether published tables can be had again | nobody has run it to its end yet |
#
# ### Verdicts
#
# A claim such as *A retrieves better than B* is tested on the difference A − B, on the same replicates and queries. Its verdict is one of four. To see them, we make four experiments up. Their
# names say by how much A is truly better or worse than B, in points of percent; scores vary between species, replicates and queries about as they do in chapter 2. Then we forget the truth and
# let [`dmlkit.claims`](../dmlkit/claims.py) judge.

# %%
BOUND = 0.01  # differences within one point count as equal, if that can be shown
SPREAD = {"class": 0.06, "replicate": 0.012, "both": 0.04, "query": 0.3}  # of a difference
generator = np.random.default_rng(0)


def make_up(truth, n=10, scheme="new classes", spread=1.0):
    """Return the difference found in n made-up replicates whose true difference is ``truth``."""
    tested = draw_splits(scheme, n, 50, generator)
    varied = {name: spread * size for name, size in SPREAD.items()}
    pair = [draw_scores(mean, tested, varied, generator) for mean in (0.4 + truth, 0.4)]
    # Random halves share training species, which verdicts on photographs allow for.
    return paired_difference(*pair, "score", overlap=float(scheme == "random halves"))


found = {
    "A1: truly 4 better": make_up(0.04),
    "A2: truly 4 worse": make_up(-0.04),
    "A3: truly equal, little variation": make_up(0.0, spread=0.3),
    "A4: truly 1 better, few replicates": make_up(0.01, n=3),
}
p_values = holm([p_value(difference, "greater", BOUND) for difference in found.values()])
p_equal = holm([p_equivalent(difference, BOUND) for difference in found.values()])
judged = pd.DataFrame(
    {
        "verdict": verdict(difference, "greater", BOUND, p, equal),
        "method": name,
        "mean": 100 * difference.mean,
        "low": 100 * difference.interval()[0],
        "high": 100 * difference.interval()[1],
        "p of a difference": p,
        "p of equality": equal,
    }
    for (name, difference), p, equal in zip(found.items(), p_values, p_equal, strict=True)
).set_index(["verdict", "method"])
rounded = judged.round({"mean": 1, "low": 1, "high": 1, "p of a difference": 3, "p of equality": 3})
results.save_table("verdicts", rounded, "Points; p values after Holm's correction.", of_data=False)

# %% [markdown]
# The same four as a picture. A dot is the difference that was found, its bar the interval of 95 %, the vertical line zero, and the grey band the
# bound. Each panel carries its verdict: look where the bar lies, beside the line and beside the band.

# %% mystnb={"image": {"alt": "Four differences with their intervals: one right of zero, held; one left of it, reversed; a narrow one around zero, equivalent; a wide one across zero, not resolved."}}
figure = differences(judged, "A − B, points")
for axis in figure.axes:
    axis.axvspan(-100 * BOUND, 100 * BOUND, color="0.5", alpha=0.15)
figure.axes[0].set_title(
    f"{figure.axes[0].get_title(loc='left')} (grey: within the bound)", loc="left", fontsize=9
)
results.save_figure("verdicts", figure, of_data=False)

# %% [markdown]
# - **Held**: the interval lies right of zero. A is better.
# - **Reversed**: it lies left of zero. The opposite of the claim is shown.
# - **Equivalent**: A and B differ by less than the bound (grey), which was fixed beforehand; two one-sided tests show it (Schuirmann, 1987). This is
#   a finding, not a lack of one.
# - **Not resolved**: the experiment cannot tell. This is *not* the same as equal.
#
# Whoever tests twenty claims, none of them true, finds one at 5 % by chance, on average. *Holm's correction* (Holm, 1979) allows for that: the
# smallest p value is multiplied by the number of claims, the next by one less, and so on; from the first that is not below 5 % on, none counts. So a
# claim may be *not resolved* although its own interval leaves zero out. (Where replicates share training species, as of photographs, a second, wider
# interval must agree: [chapter 1](01_evaluation.ipynb).) Verdicts on drawn data are marked as demonstrations.
#
# ### How many replicates do I need?
#
# As many as resolve the difference you care about. From one made-up experiment of many replicates we compute the smallest true difference that n replicates would find four times in five
# (before Holm's correction), for three ways to repeat an experiment: with new species each time, as for drawn birds; with random halves of one set, as for photographs; and with the same species and another
# seed, as in most papers. The figure has a line for each way, over the number of replicates; lower is better. Look which line goes on falling.

# %% mystnb={"image": {"alt": "The smallest difference that is found falls with the number of replicates, towards zero for new species and towards a floor where species are shared."}}
counts = (2, 3, 5, 10, 20, 50)
resolved = {}
for scheme in SCHEMES:
    pilot = make_up(0.0, n=40, scheme=scheme)
    resolved[scheme.replace("classes", "species")] = [100 * pilot.detectable(n) for n in counts]
resolved = pd.DataFrame(resolved, index=pd.Index(counts, name="replicates")).round(2)
results.save_table("replicates", resolved, "Points of percent.", of_data=False)
figure = lines(resolved.loc[3:], "replicates, n", "smallest difference found, points")
figure.axes[0].set_ylim(bottom=0)
results.save_figure("replicates", figure, of_data=False)
resolved

# %% [markdown]
# Two replicates find next to nothing (they are left out of the picture), five are a fair start, and from ten on it pays less and less. Where the species are shared, the curve ends at a floor: no number of seeds tells
# how other species would have fared. Random halves have the highest floor because they share *training* species as well, and what two networks learned from the same birds may err in the same way; the interval for photographs allows for that
# (Nadeau and Bengio, 2003), which is cautious. [Chapter 1](01_evaluation.ipynb) computes such a table from real runs, and compares it with the differences that papers have published.
#
# ## 6. A map of the book
#
# | chapter | question |
# |---|---|
# | [0 Introduction](00_introduction.ipynb) | What is this, and how do I use it? |
# | [1 Evaluation](01_evaluation.ipynb) | What does a number mean, how far may it be off, and how many replicates resolve a difference? |
# | [2 The baseline losses](02_baseline_losses.ipynb) | Of 26 losses of fifteen years, which retrieves best once each gets the same chance? |
# | [3 NormSoftmax](03_norm_softmax.ipynb) | Is plain classification as good as losses of pairs, and which of its parts matter? |
# | [4 Self-supervised ranking](04_self_supervised_ranking.ipynb) | Does a second task, to rank views of an image by how much they were changed, help? |
# | [5 SLADE](05_slade.ipynb) | Do unlabelled images help, through clusters taken as labels? |
# | [6 SLADE, its ablations](06_slade_ablations.ipynb) | Which parts of SLADE matter? |
# | [7 All methods](07_all_methods.ipynb) | All of them side by side: what does each add, and what does it cost? |
#
# Each reads on its own. With little time, read 1 and 2.
#
# ## 7. For your own work
#
# A trained model becomes a file with [`save_model`](../dmlkit/saving.py). It holds the weights and says what network they belong to and how an image has to enter it, so
# `load_model` needs nothing but the file. It holds no code, so a file from somebody else can do no harm. (Here it goes where this chapter keeps what git ignores.)

# %%
model_file = results.folder / "stages" / "birds.pt"
sizes = {"image_size": IMAGE_SIZE, "cache_size": CACHE_SIZE, "short_side": SHORT_SIDE}
save_model(model_file, model, trunk=TRUNK, **sizes, note=f"{DATASET}, contrastive, {STEPS} steps")
saved = load_model(model_file, device=device)
assert torch.equal(
    embed(saved.model, test, plain_view, device=device),
    embed(model, test, plain_view, device=device),
)
print(saved)

# %% [markdown]
# What comes back gives the same embeddings, to the last bit. Now a folder of images. Yours may have any layout; we write drawn birds of ten unseen species into one,
# a sub-folder per species only so that you can see whether an answer is right, and one image of each species into another folder, to search with. As in real folders, there is also a text file, and
# an image of which only the first half was copied. (They stay below `RESULTS_DIR`, where you can open them.)

# %%
folder = results.folder / "pictures" / "search"
rmtree(folder, ignore_errors=True)  # of an earlier execution
photographs, wanted = folder / "photographs", folder / "wanted"
wanted.mkdir(parents=True)
place = {}  # of each file within the test set
names = [name.replace("/", " ") for name in test.class_names[:10]]
for label, name in enumerate(names):
    own = (test.labels == label).nonzero().squeeze(1)[:12]
    (photographs / name).mkdir(parents=True)
    files = [wanted / f"{name}.png", *(photographs / name / f"{i}.png" for i in range(1, len(own)))]
    for file, position, image in zip(files, own.tolist(), test.gather(own), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        place[file.relative_to(folder).as_posix()] = position
(photographs / "notes.txt").write_text("Seen at the lake.")
_ = (photographs / "half.png").write_bytes(file.read_bytes()[:500])

# %% [markdown]
# A few lines index the folder and search it. [`index_folder`](../dmlkit/gallery.py) decodes a few images at a time, so a hundred thousand photographs need no more memory than a few,
# and keeps of each its embedding and name. An image that cannot be read is named and skipped, and other files are counted. The index is a file, too: `save_gallery`
# and `load_gallery`, which refuses any model but the one that made it. When the folder changes, `index_folder(..., known=gallery)` embeds what is new.

# %%
gallery = index_folder(saved, photographs)
save_gallery(folder / "birds.gallery", gallery)
gallery = load_gallery(folder / "birds.gallery", saved)
answers = gallery.search(wanted / f"{names[-1]}.png", k=6)
answers.round(3)

# %% [markdown]
# The answers as pictures. A folder in place of the image searches with each of its images; here with the first three of ours.

# %% tags=["pictures"] mystnb={"image": {"alt": "Three query birds, each with the six images of the folder that are most similar."}}
many = gallery.search(wanted, k=6)
asked_files = list(dict.fromkeys(many["query"]))[:3]
positions = [
    [place[f"photographs/{path}"] for path in many.loc[many["query"] == name, "path"]]
    for name in asked_files
]
asked = torch.tensor([place[f"wanted/{name}"] for name in asked_files])
results.save_table("gallery", many.round(3).set_index(["query", "rank"]))
save_pictures("gallery", nearest_neighbours(test, torch.tensor(positions), asked))

# %% [markdown]
# The search knows no species; the ticks come from the names of the sub-folders. Where it errs, the wrong bird mostly has colours or a shape of the
# query.
#
# For photographs of your own, start from a network that knows photographs (`TRUNK`, `WEIGHTS`), and turn those upright that a telephone only marks as turned: the mark is
# not read. If you have labels, run a chapter on them (`-p DATASET class_folder`, see the
# README), or copy section 2. The similarity is a cosine; whether 0.8 is much depends on the model, so look at a few answers before you fix a threshold. And measure: label a
# hundred queries, and `dmlkit.metrics` tells how good the search is, with an interval from `dmlkit.intervals`.
#
# ## 8. Try this
#
# Change one parameter in the cell at the top, run all cells, and compare with what you saw.
#
# 1. `IMAGES_PER_CLASS = 2`: the batch holds as many images, but fewer pairs of one species and more species. Does retrieval after training (section 2) get better or worse, and does
#    the interval of section 5 let you say so?
# 2. `EMBEDDING_DIM = 4`: how much of a ranking survives in four numbers? Look at the neighbours after training, and at the species that suffer most.
# 3. `SEEDS = [1]`: other species and another seed, and nothing else. By how much does the table of section 2 change? So much a comparison of two methods on *different* replicates would have to beat, and that is why this book compares them on the same ones.
#
# ## 9. Glossary
#
# | word | meaning |
# |---|---|
# | anchor, positive, negative | an image of the batch that is compared; another of its class; one of another class |
# | AMI, NMI | how well clusters of the embeddings agree with the classes (mutual information, normalised); AMI subtracts what chance gives |
# | batch | the images of one training step, `IMAGES_PER_CLASS` of each of a few classes |
# | class-disjoint | no class is in two parts of a split |
# | claim | a sentence of a paper that can be tested, listed before the runs in [`claims.csv`](claims.csv) |
# | embedding | the vector of length 1 to which the network maps an image; also the map itself |
# | gallery | the images that are searched |
# | head | the last part of the network, from features to the embedding |
# | interval | of 95 %: a range that holds the true value in 95 of 100 experiments |
# | MAP@R | mean over queries: precisions at the right ones of the first R, summed and divided by R |
# | margin | how far apart a loss wants negatives, or how much closer positives |
# | miner | a rule that says which pairs or triplets of a batch count |
# | open set | the classes of a test were never trained on |
# | profile, rung | one scale of all runs: data, network, steps; as evidence, a rung of a ladder |
# | proxy | a learned vector that stands for a class, to which images are compared instead of to each other |
# | query | the image one searches with |
# | R | the number of images that are right answers to a query |
# | R@K, Recall@K | share of queries with a right image among the first K |
# | replicate | one split into training and test classes, with one seed |
# | RP, R-precision | share of right images among the first R |
# | split | a division of the classes into training, validation and test classes |
# | trunk | the network up to its pooled features |
# | verdict | held, reversed, equivalent or not resolved: what the experiments say of a claim |
