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
# # 7. All methods side by side
#
# Each chapter compared a method with its own rivals. Here all of them meet, on the same unseen classes: what each adds to one of the oldest losses,
# contrastive (Hadsell, Chopra and LeCun, 2006), what it costs, where they agree and where they fail, what the results vary by, and which of the
# papers' claims held. **Nothing is trained here.** The chapter reads the rows that the others have left in `RESULTS_DIR`, as far as they are there,
# and is run after them.

# %% tags=["parameters"]
CHAPTERS: list = ["01_evaluation", "02_baseline_losses", "03_norm_softmax", "04_self_supervised_ranking", "05_slade", "06_slade_ablations"]  # read, as far as they were run  # fmt: skip
BASELINE: str = "contrastive"  # method that all others are compared with
METRIC: str = "map_at_r"  # compared: map_at_r, recall_at_1 or r_precision
PICTURED: list = ["frozen_trunk", "contrastive", "multi_similarity", "norm_softmax", "margin_ranking", "contrastive_student"]  # methods on maps and pictures  # fmt: skip
PICTURED_SEED: int = 0  # their replicate: the one whose embeddings the chapters keep
DATASET: str = "aviary"  # images of these results
DATA_DIR: str = "data"  # folder that holds real data sets, from the project root
RESULTS_DIR: str = "results/local/mini"  # where results are and go, from the project root

# %%
import json

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, spearmanr

from dmlkit.claims import ledger
from dmlkit.datasets import FAMILIES, PICTURES_MAY_BE_SHOWN, load
from dmlkit.evaluation import evaluate_embeddings
from dmlkit.intervals import estimate, paired_difference
from dmlkit.paths import resolve
from dmlkit.plots import (
    beside_published,
    cost_and_result,
    differences,
    embedding_maps,
    lines,
    nearest_neighbours,
    set_style,
)
from dmlkit.references import OF_FEATURES, OF_PIXELS
from dmlkit.results import ChapterResults, finished_rows, read_scores, trials_of, what_rows_are
from dmlkit.search import expected_best
from dmlkit.tables import metric_title, show_claims, show_ledger, summarise

results = ChapterResults("07_all_methods", globals())
set_style()

# %% [markdown]
# ## What was run
#
# The chapters found here, each with its data, replicates, steps and cost: hours of all its runs, validation included, and of the searches before them. Chapters
# differ in more than the method: with a frozen trunk chapter 4 trains a layer below its heads, and chapter 5 has labels for a part of the classes.

# %%
folders = {chapter: resolve(RESULTS_DIR) / chapter for chapter in CHAPTERS}
rows_of = {
    chapter: finished_rows(folder)
    for chapter, folder in folders.items()
    if (folder / "runs.csv").exists()
}
searched = {}  # chapter to method, seed, seconds and the best scores of the trials
for chapter in rows_of:
    found = [
        {
            **{name: record[name] for name in ("method", "seed", "seconds")},
            "scores": [trial.score for trial in trials_of(record)],
        }
        for path in sorted(folders[chapter].glob("searches/*.json"))
        for record in [json.loads(path.read_text())]
    ]
    if found:
        searched[chapter] = pd.DataFrame(found)


def is_derived(methods):
    """Return which methods are made of other rows' runs: codes of one bit, joined models."""
    return methods.str.endswith(("_binary", "_concatenated"))


if not rows_of:
    raise ValueError(
        f"RESULTS_DIR={RESULTS_DIR} holds no rows of {', '.join(CHAPTERS)}; run these chapters first"
    )
for chapter, rows in rows_of.items():
    if others := set(rows["dataset"]) - {DATASET}:
        raise ValueError(f"{chapter} holds rows of {', '.join(others)}; set DATASET to that")
hours_of_searches = {chapter: found["seconds"].sum() / 3600 for chapter, found in searched.items()}
results.stamp = what_rows_are(pd.concat(rows_of.values()))
table = pd.DataFrame(
    {
        chapter: {
            "methods": rows["method"].nunique(),
            "replicates": rows["seed"].nunique(),
            "trunk": ", ".join(sorted({p["TRUNK"] for p in rows["params"]})),
            "steps": str(int(rows["steps"].max())),
            # Codes of one bit are those of another row's run.
            "hours, runs": f"{rows.loc[~is_derived(rows['method']), 'seconds'].sum() / 3600:.1f}",
            "hours, searches": f"{hours_of_searches.get(chapter, 0):.1f}",
            "commit": ", ".join(sorted(rows["commit"].unique())),
        }
        for chapter, rows in rows_of.items()
    }
).T.rename_axis("chapter")
results.save_table("chapters", table)

# %% [markdown]
# ## One table
#
# Every method of the chapters' main tables; the number in front is its chapter's. What needs no training stands first and once. Percent with 95 %
# intervals over class splits and test classes, as everywhere; the last columns say how far a method is from the baseline on the *same*
# splits and queries, in points, with the interval that also allows for training classes that splits share where they do. These are
# differences to look at, without a verdict: of fifty such intervals some leave zero out by chance. What was claimed beforehand is judged at the end.

# %%
compared, first_of = [], {}
for chapter, rows in rows_of.items():
    main = folders[chapter] / "tables" / "main.csv"
    if not main.exists():
        continue
    for method in pd.read_csv(main)["method"]:
        of_method = rows[rows["method"] == method]
        is_reference = method in OF_PIXELS + OF_FEATURES
        if is_reference and method in first_of:
            continue
        first_of.setdefault(method, chapter)
        label = method if is_reference else f"{int(chapter[:2])} {method}"
        compared.append(of_method.assign(chapter=chapter, label=label, is_reference=is_reference))
if not compared:
    raise ValueError(
        f"{', '.join(rows_of)} have no table of methods; run chapter 2, 3, 4 or 5, too"
    )
every = pd.concat(compared, ignore_index=True)
by_class = {
    row.run_id: read_scores(folders[row.chapter] / "runs" / f"{row.run_id}.npz")
    for row in every.itertuples()
}
labels = [*dict.fromkeys(every.sort_values("is_reference", ascending=False, kind="stable").label)]
scores_of = {
    label: {row.seed: by_class[row.run_id] for row in every[every.label == label].itertuples()}
    for label in labels
}
# Random parts of one set of classes overlap: test classes over training classes, of which a pool
# takes some. Species drawn anew for each replicate do not.
is_random = (every["protocol"] == "random").all() and DATASET not in FAMILIES
overlaps = {
    label: is_random / (1 - params.get("POOL_SHARE", 0) * (params.get("POOL") == "other_classes"))
    for label, params in zip(every["label"], every["params"], strict=True)
}


def classes_tested(scores):
    """Return what tells whether two methods met the same queries."""
    return tuple(scores["classes"]), tuple(scores["labels"]), tuple(scores["queries"])


def difference(first, second, metric=METRIC):
    """Return the paired difference of two methods; None where they share no two replicates."""
    one, other = scores_of[first], scores_of[second]
    seeds = [
        seed
        for seed in sorted(one.keys() & other.keys())
        if classes_tested(one[seed]) == classes_tested(other[seed])
    ]
    if len(seeds) < 2:
        return None
    pairs = [one[seed] for seed in seeds], [other[seed] for seed in seeds]
    overlap = max(overlaps[first], overlaps[second])
    return paired_difference(*pairs, metric, overlap=overlap)


def in_points(found):
    """Return mean and interval of a difference in points of percent."""
    low, high = found.interval()
    if found.overlap:
        low, high = min(low, found.t_interval()[0]), max(high, found.t_interval()[1])
    return {"mean": 100 * found.mean, "low": 100 * low, "high": 100 * high}


candidates = [label for label in labels if label.split()[-1] == BASELINE]
if not candidates:
    raise ValueError(f"BASELINE={BASELINE} is in no main table here; choose {', '.join(first_of)}")
baseline = candidates[0]
to_baseline = {label: difference(label, baseline) for label in labels if label != baseline}
to_baseline = {label: in_points(found) for label, found in to_baseline.items() if found}
table = summarise(every.assign(method=every["label"]), by_class, labels)
title = f"{metric_title(METRIC)} minus {baseline}"
table.insert(
    table.columns.get_loc("steps"),
    title,
    [
        f"{d['mean']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]" if d else "–"
        for d in map(to_baseline.get, labels)
    ],
)
results.save_table("all_methods", table)

# %% [markdown]
# The same differences as a picture: a panel for what is not trained and one for each chapter, a dot per method with its interval of 95 %. Right of
# zero a method looks better than the baseline, left of it worse; an interval across zero says neither. Look first which panels lie as a whole to one
# side.

# %% mystnb={"image": {"alt": "The difference of each method to contrastive, as points with intervals beside a line at zero, a colour per chapter."}}
chapter_of = dict(zip(every["label"], every["chapter"], strict=True))
of_references = set(every.loc[every["is_reference"], "label"])
group = {label: "not trained" if label in of_references else chapter_of[label] for label in labels}
if to_baseline:
    frame = pd.DataFrame(to_baseline).T
    frame.index = pd.MultiIndex.from_tuples([(group[label], label) for label in frame.index])
    results.save_figure("differences", differences(frame, f"{title}, points"))

# %% [markdown]
# Where the trunk is trained (`mini`, `birds`), all that needs no training lies left of zero with its whole interval. Above frozen features
# (`features`) within-class whitening is about as far right as the best losses, most losses of chapters 2 and 3 lie close to zero, and all of chapter
# 5 lies to the left, where heads learn from fewer labelled classes.

# %% [markdown]
# ## What does the official split say?
#
# Papers test on one split: the first half of the classes trains, the second tests. Rows of that split, with the same search, stand in a folder
# `official` beside the chapters', where they were made. Its replicates share their classes, so an interval over them would say how well the seed is known, not the
# method; the table therefore gives means and standard deviations only, and no claim is judged on it. *Rank* is the place among the trained methods of a
# chapter, joined models and bits aside. Below the table: Kendall's rank correlation of the order on the official split with the mean order on random ones, and, to compare with,
# what one random split has with the mean of the others.

# %%
on_both, agreement = [], {}
for chapter in rows_of:
    folder = resolve(RESULTS_DIR) / "official" / chapter
    if not (folder / "runs.csv").exists():
        continue
    rows = finished_rows(folder)
    of_chapter = every[every["chapter"] == chapter]
    on_random, on_official = (
        100 * of_rows.pivot_table(index="seed", columns="method", values=f"metric_{METRIC}")
        for of_rows in (of_chapter, rows[rows["method"].isin(of_chapter["method"])])
    )
    on_random = on_random[on_official.columns]
    is_ranked = ~on_official.columns.isin(OF_PIXELS + OF_FEATURES)
    trained = on_official.columns[is_ranked & ~is_derived(on_official.columns)]
    names = of_chapter.drop_duplicates("method").set_index("method")["label"]
    columns = {"random splits": on_random, "official split": on_official}
    part = {}
    for title, values in columns.items():
        part[title] = values.mean().map("{:.1f}".format)
        part[f"{title}, deviation"] = values.std().map("{:.1f}".format)
        ranks = values[trained].mean().rank(ascending=False)
        part[f"{title}, rank"] = ranks.map("{:.0f}".format)
    of_methods = [m for m in dict.fromkeys(of_chapter["method"]) if m in on_official]
    on_both.append(pd.DataFrame(part).reindex(of_methods).rename(index=names))
    if len(trained) > 2 and len(on_random) > 1:
        alone = [
            kendalltau(on_random.loc[s, trained], on_random.drop(index=s)[trained].mean()).statistic
            for s in on_random.index
        ]
        tau = kendalltau(on_official[trained].mean(), on_random[trained].mean()).statistic
        agreement[chapter] = (
            f"{tau:.2f} for the official split, {np.mean(alone):.2f} (from {min(alone):.2f} to "
            f"{max(alone):.2f}) for one random split"
        )
if on_both:
    note = "; ".join(f"chapter {int(chapter[:2])}: {said}" for chapter, said in agreement.items())
    table = pd.concat(on_both).fillna("").rename_axis("method")
    results.save_table("official", table, f"{metric_title(METRIC)}, %. Kendall's tau: {note}.")
else:
    print("The official split was not run here.")

# %% [markdown]
# In `features` the official split is harder by eight points of MAP@R: classes are in the order of the alphabet, and sparrows and warblers fill its
# test half. A deviation over seeds is mostly less than half of one over splits, since seeds leave the classes as they are. The order of methods there agrees with their mean
# order about as well as that of any random split does, which is not well: whoever ranks methods on one split, official or not, ranks that split.
#
# ## What does a point cost?
#
# Training time of one run, validation included, from left to right, against what it retrieves, from bottom to top; colours and signs are chapters.
# Named are the methods that no other one beats in both; dashed lines are what needs no training. Which dots lie above all dashed lines? Where
# chapters have other replicates (*n* above), only the paired differences compare them. Compare times within a chapter: different chapters were run on
# different days, some beside other work.

# %% mystnb={"image": {"alt": "Results of all methods over their training time."}}
frame = pd.DataFrame(
    {
        label: {
            "seconds": of_label["seconds"].mean(),
            "value": 100 * estimate([by_class[i] for i in of_label["run_id"]], METRIC).mean,
            "group": group[label],
        }
        for label, of_label in every.groupby("label", sort=False)
    }
).T
results.save_figure("cost", cost_and_result(frame, f"{metric_title(METRIC)}, %"))

# %% [markdown]
# In `features` a run takes seconds, and only one dot, of joined models, lies above within-class whitening, which takes none. In `mini` all trained
# methods lie above the dashed lines, in `birds` all losses of chapter 2 but semi-hard triplets: there training buys something.
#
# ## One map for each
#
# UMAP (McInnes, Healy and Melville, 2018) of the same ten unseen classes, a panel per method, a point per image and a colour per class, all with the
# same settings and colours. Distances between far clusters mean nothing; whether a colour holds together does. (Chapters keep the embeddings of one
# replicate where they were run; a method without is left out.)

# %% mystnb={"image": {"alt": "Maps of the same test classes, one per method, in the same colours."}}
paths = [folders[row.chapter] / "embeddings" / f"{row.run_id}.npy" for row in every.itertuples()]
kept = every.assign(path=paths)[[path.exists() for path in paths]]
if len(kept) and PICTURED_SEED not in set(kept["seed"]):
    raise ValueError(
        f"PICTURED_SEED={PICTURED_SEED}: embeddings are kept of replicate {kept['seed'].min()}"
    )
kept = kept[kept["seed"] == PICTURED_SEED]
stored = {row.label: torch.from_numpy(np.load(row.path)).float() for row in kept.itertuples()}
pictured = [
    next((label for label in stored if label.split()[-1] == method), None) for method in PICTURED
]
pictured = [label for label in pictured if label]
test = None
if pictured:
    params = every.loc[every["label"] == pictured[-1], "params"].iloc[0]
    test = load(
        DATASET,
        DATA_DIR,
        image_size=params["CACHE_SIZE"],
        short_side=params["SHORT_SIDE"],
        protocol=params["PROTOCOL"],
        selection=params["SELECTION"],
        max_classes=params["MAX_CLASSES"],
        max_images_per_class=params["MAX_IMAGES_PER_CLASS"],
        seed=PICTURED_SEED,
    ).test
    stored = {label: found for label, found in stored.items() if len(found) == len(test)}
    pictured = [label for label in pictured if label in stored]
    panels = {label: stored[label] for label in pictured}
    results.save_figure("maps", embedding_maps(panels, test.labels))
else:
    print("No embeddings are kept here: run the chapters anew to see maps and pictures.")

# %% [markdown]
# In `mini` the untrained trunk mixes the colours, and each trained method gathers at least some of them; which method is best cannot be read off. In
# `features` and `birds` the clusters differ in place, which means nothing, more than in kind.
#
# ## What all find easy, and what all find hard
#
# The three queries that the methods of the maps answer best on average, then the three they answer worst, by average precision at R; neighbours are
# those of the last method in `PICTURED`, right (✓) or wrong (✗). Chosen for their extremes, so they say what kind of image is easy, not how good a
# method is. What sets the lower queries apart?

# %% tags=["pictures"] mystnb={"image": {"alt": "The three easiest and the three hardest queries, each followed by its nearest images."}}
if pictured:
    found = {
        label: evaluate_embeddings(stored[label], test.labels, ks=(1,)).retrieval
        for label in pictured
    }
    average = torch.stack([f.per_query["map_at_r"] for f in found.values()]).mean(dim=0)
    order = average.argsort(descending=True, stable=True)
    extremes, last = torch.cat([order[:3], order[-3:]]), found[pictured[-1]]
    figure = nearest_neighbours(test, last.neighbours[extremes, :6], last.queries[extremes])
    results.save_figure("extremes", figure, keep_local=DATASET not in PICTURES_MAY_BE_SHOWN)

# %% [markdown]
# The easy queries may well be of one class, one that resembles no other. The hard ones have neighbours of other classes in the same colours, or show
# little of what tells their class: a person might hesitate, too.
#
# ## What do results vary by?
#
# Standard deviations in points, of the trained methods of each chapter: between the means of the *methods*, which is what the field competes for; between the *class splits*
# of one method (with its seeds); between splits of the *difference* of two methods, which pairing leaves; of the *test classes* within one split, had others been
# drawn. (In chapters 4 and 5 the methods are the arms of a few losses, controls among them.)

# %%
deviations = {}
for chapter, of_chapter in every[~every["is_reference"] & ~is_derived(every["method"])].groupby(
    "chapter"
):
    values = 100 * of_chapter.pivot_table(
        index="seed", columns="method", values=f"metric_{METRIC}"
    ).dropna(axis=1)
    if values.shape[1] < 2 or len(values) < 2:
        continue
    within = [estimate([by_class[i]], METRIC).interval() for i in of_chapter["run_id"]]
    beyond, k = values.sub(values.mean(axis=1), axis=0), values.shape[1]
    deviations[chapter] = {
        "methods": values.mean().std(),
        "class splits": values.std().mean(),
        # Of all pairs; what is beyond the mean of k methods varies less by (k - 1) / k.
        "splits, of a difference": np.sqrt(2 * k / (k - 1) * beyond.var().mean()),
        "test classes": 100 * np.mean([high - low for low, high in within]) / (2 * 1.96),
    }
if deviations:
    table = pd.DataFrame(deviations).T.map("{:.1f}".format)
    results.save_table("variation", table.rename_axis("chapter"))

# %% [markdown]
# ## Does validation know what testing will say?
#
# Where there was a search: Kendall's rank correlation, over the methods of a chapter, of the best score on held-out training classes with the score
# on the test classes of the same split, mean over splits (1: the same order; 0: none), and by how much the best trial is above the defaults, which
# are the first. Then what a search of fewer trials would have found, in the mean over methods and splits, all in points of MAP@R of the held-out
# classes (Dodge et al., 2019). The figure has the number of trials from left to right, a line per chapter. What does the last trial add?

# %% mystnb={"image": {"alt": "The best validation result to expect, over the number of trials of a search, a curve per chapter."}}
agreement, curves = {}, {}
for chapter, found in searched.items():
    of_chapter = found.set_index(["method", "seed"])["scores"]
    tested = rows_of[chapter].set_index(["method", "seed"])["metric_map_at_r"]
    several = [s for s in of_chapter if len(s) > 1 and min(s) >= 0]  # -1: it diverged
    best = pd.Series({key: max(s) for key, s in of_chapter.items() if len(s) > 1 and key in tested})
    taus = [
        kendalltau(group, tested[group.index]).statistic
        for _, group in best.groupby(level=1)
        if len(group) > 2
    ]
    if taus:
        agreement[chapter] = {
            "methods": best.index.get_level_values(0).nunique(),
            "splits": len(taus),
            "Kendall's tau": f"{np.mean(taus):.2f}",
            "gain over the defaults": f"{100 * np.mean([max(s) - s[0] for s in several]):.1f}",
        }
    if several:
        shortest = min(map(len, several))
        curves[chapter] = 100 * np.mean([expected_best(s)[:shortest] for s in several], axis=0)
if agreement:
    results.save_table("validation", pd.DataFrame(agreement).T.rename_axis("chapter"))
if curves:
    table = pd.DataFrame({chapter: pd.Series(curve) for chapter, curve in curves.items()})
    table.index += 1
    figure = lines(table, "trials", "best MAP@R of validation classes, %")
    results.save_figure("trials", figure)
else:
    print("No chapter has searched here.")

# %% [markdown]
# Such a curve never falls, and each further trial adds no more than the one before: that is how an expected maximum behaves. So the first trials gain
# most, and what the last step still adds says whether a longer search would have paid.
#
# ## Does the shape of an embedding tell how it generalises?
#
# Embeddings which spread their variance over many directions were found to transfer better (Roth et al., 2020). For the pictured
# replicate: the *spectral decay*, that is the divergence of equal singular values from those of the test embeddings (0: all directions used alike), and
# the *density*, mean distance of two images of a class over mean distance of two class means. They measured training classes; these are the test classes, the only ones
# whose embeddings are kept. Below the table the rank correlation of either with the metric over the trained methods.


# %%
def shape_of(embeddings, labels):
    """Return spectral decay and density of unit embeddings (N, D) with labels (N,)."""
    values = torch.linalg.svdvals(embeddings.double())
    values = values / values.sum()
    decay = -(values * len(values)).clamp_min(1e-12).log().mean().item()
    of_classes = [embeddings[labels == label] for label in labels.unique()]
    within = torch.cat([torch.pdist(of_class) for of_class in of_classes]).mean()
    between = torch.pdist(torch.stack([of_class.mean(dim=0) for of_class in of_classes])).mean()
    return {"spectral decay": decay, "density": (within / between).item()}


if pictured:
    of_seed = every[every["seed"] == PICTURED_SEED].set_index("label")
    shapes = pd.DataFrame({label: shape_of(e, test.labels) for label, e in stored.items()}).T
    shapes[metric_title(METRIC)] = 100 * of_seed.loc[shapes.index, f"metric_{METRIC}"]
    trained = shapes[~of_seed.loc[shapes.index, "is_reference"].to_numpy(dtype=bool)]
    note = ""
    if len(trained) > 4:
        rho = {c: spearmanr(trained[c], trained[metric_title(METRIC)]) for c in shapes.columns[:2]}
        note = "Spearman's correlation over trained methods: " + ", ".join(
            f"{name} {found.statistic:+.2f} (p {found.pvalue:.2f})" for name, found in rho.items()
        )
        note += "; of one replicate, and methods are not independent."
    results.save_table("shape", shapes.map("{:.2f}".format).rename_axis("method"), note)

# %% [markdown]
# ## Published and measured
#
# For each claim with a published difference: that, and ours, with the wider of its two 95 % intervals, in points. Ours come from other data, trunks
# and budgets than the papers', so they need not agree; a published difference far outside of our interval is one that does not carry over to here. In
# the figure each row is a claim: the round dot and its bar are ours, the diamond (two with a line between them, for a range) is published, and the
# vertical line is zero.

# %% mystnb={"image": {"alt": "Published differences beside ours with intervals, a row per claim."}}
judged, both = ledger([resolve(RESULTS_DIR)]), ()
judged = judged[judged["chapter"].isin(CHAPTERS)]
if len(judged):
    # A number, or from one to another, at the beginning of what claims.csv says.
    printed = judged["published"].str.extract(r"^(([+-]?\d+\.?\d*)(?:-(\d+\.?\d*))?)")
    both = judged.assign(
        published=printed[0],
        published_low=printed[1].astype(float),
        published_high=printed[2].fillna(printed[1]).astype(float),
        difference=100 * judged["difference"],
        low=100 * judged[["low", "t_low"]].min(axis=1),
        high=100 * judged[["high", "t_high"]].max(axis=1),
        detectable=100 * judged["detectable"],
    ).dropna(subset=["published_low"])
    if len(both):
        results.save_figure("published", beside_published(both))

# %% [markdown]
# In `features` most dots of losses (E1) stand nearer to zero than their diamonds; those of SLADE's student (D1) stand at zero, those of its mining and
# its loss in chapter 6 (D3b, D4a) on the other side of it, and a larger dimension (C4a) gains more than was published. Where a bar is long, as mostly
# in `birds`, it holds the diamond and zero alike, and says little; there only the student of SLADE and its mining (D1a, D3b) are clear of both.
#
# In numbers: whether what was published lies inside our interval, the wider of two. Where it does and zero does, too, both are possible: nobody can
# tell here. *Detectable* is the true difference that a comparison of this size would call significant four times in five, before Holm's correction
# (Holm, 1979).

# %%
shown = "No claim with a published difference was judged here."
if len(both):
    is_inside = both["published_low"].le(both["high"]) & both["published_high"].ge(both["low"])
    reach = {
        "published": both["published"],
        "difference": both["difference"].map("{:+.1f}".format),
        "interval": [f"[{claim.low:+.1f}, {claim.high:+.1f}]" for claim in both.itertuples()],
        "detectable": both["detectable"].map("{:.1f}".format),
        "published inside": np.where(is_inside, "yes", "no"),
        "verdict": both["verdict"],
    }
    shown = results.save_table("reach", pd.DataFrame(reach).set_index(both["claim"]))
shown

# %% [markdown]
# ## The ledger
#
# All claims that these chapters could judge, by paper and verdict (chapter 2 says how). Then every claim over all profiles that stand in the
# folder beside this one, difference in points in brackets.

# %%
if len(judged):
    table = pd.crosstab(judged["paper"], judged["verdict"]).rename_axis(columns=None)
    results.save_table("verdicts", table)
show_claims(judged)

# %%
beside = sorted(path for path in resolve(RESULTS_DIR).parent.iterdir() if path.is_dir())
results.save_table("ledger", show_ledger(ledger(beside)))

# %% [markdown]
# ## Paper by paper, on real images
#
# What held, what was reversed and what is equivalent on CUB-200 (2010) and Omniglot; all else in the ledger is *not resolved*. (*F*: `features`, ten
# splits; *B*: `birds`, five splits, in chapters 3 and 6 four; *O*: `omniglot`, three splits, in chapter 5 five.)
#
# **Does training help at all?** B: contrastive, Multi-Similarity and NormSoftmax beat the trunk they start from (R1, R3, R4) and within-class whitening (W1, W3, W4): held. O: the four losses with a claim are 39 to 51 points of R@1 above the random trunk (R1 to R4 held). F: none is resolved; every single loss of chapter 2 has a mean below whitening's. (Multi-Similarity above the frozen trunk held once, in an earlier set of rows, and does no more.)
#
# **Multi-Similarity (Wang et al., 2019).** B: it beats semi-hard triplets by nine points of R@1 (B1b held). Nothing is reversed. Its advantage over contrastive (+0.2 F, +1.3 B, +7.5 O), over Deep_Metric's lifted structure and binomial deviance (+0.3 and 0.0 F), and that of its miner (-0.5 F) are not resolved; the paper's own
# comparison had other conditions for each loss.
#
# **NormSoftmax (Zhai and Wu, 2019).** Held: it is not worse than semi-hard triplets (B, C1b); more dimensions retrieve better (F, C4a: nine points from 64 to 512, where the paper gained four, on other data and a whole network); a temperature of 0.05 beats four times as much (F, C4d). *Reversed*: that a tenth of the classes in each softmax, with
# importance weights, changes nothing (O, C6b: -3.8 points of R@1). Diagnosis: a sweep over the share rises without a plateau up to all classes, with the weights as without; they restore the gradient that the embeddings of one step get, but a class vector still meets its
# wrong images in a tenth of the steps only (chapter 3). Four times as many steps do not close it (-3.7 without the weights, -2.7 with them, neither resolved by three splits). Bits (-2.0 points of R@1 at 1,280 dimensions, F; the published -1.7 lies inside), layer norm gains less (+1.2, B; published 4.3, outside the interval), balanced batches lie on the other side of zero (-5.5, B), all unresolved.
#
# **A reality check (Musgrave et al., 2020)** says that losses differ less than their papers claim. No equivalence within half a point is shown: ten splits would have to tell 0.5 points, and tell one to two and a half. But where that paper itself still has a loss 1.3 to 3.4 points behind contrastive (both forms of Margin, NT-Xent, FastAP, ProxyNCA, NormSoftmax, Multi-Similarity without its
# miner, triplets), our intervals lie around zero and exclude it (F, all but triplets): on frozen features, after the same search, losses are closer still.
#
# **Self-supervised ranking (Fu et al., 2021).** F: beside Margin the task is *equivalent* to no task at all within half a point of MAP@R (A1a), to its views in random order (A3a), and order and floor together to the order alone (A4a, beside Multi-Similarity). The published *2-4 %*, if points, lie outside our intervals
# on frozen features, semi-hard triplets' R@1 aside, and inside most of them where the whole network trains (B); if shares of a base loss, most intervals hold them. Beside Multi-Similarity the order of the views is not resolved (A3b). Why little is gained is not known; chapter 4 has a conjecture.
#
# **SLADE (Duan et al., 2021).** F: no difference between student and teacher is resolved (+0.1 and -0.2, two points either way possible), and the published four points lie outside the intervals. Without the search the same claims were *reversed*; chapter 5 shows by the trials what changed. *Reversed* as they stand in chapter 6, which has no search, are the use of mining (D3b) and of the similarity-distribution loss (D4a). Diagnosis: with a quarter of the learning rate both are smaller by half and reversed again (chapter 6); a likely reason: of the pairs that similarity alone takes for positive two in three were wrong with default settings, and about half after the search (chapter 5). D4a (p .005) would not survive a correction over both chapters on SLADE together.
# B: the student collapses, 2 points of MAP@R where its teacher has 15 (D1a, D1b, and D3b for mining alone; p .01 to .02, after Holm's correction .09 to .11 and so *not resolved*). Asked whether that is a defect: the pool's clusters at their word do no visible harm (+0.5), its true labels gain 1.7. Diagnosis: the running means that decide which pairs are mined lag behind, and the loss that should hold similarities apart is damped, until most or all pairs count as positive.
# Four splits, MAP@R of the student 2.2; with the full gradient 6.4, two splits still collapsed; with momentum 0, which removes both, 10.1 and none collapsed, 4.8 below the teacher (chapter 5).
# O: the student is 14 points behind a teacher trained on (D1b *reversed*). Diagnosis: nearly all pairs of the pool count as positive there from the first measured step on, one in twenty of them of one cluster (chapter 5, table of mined pairs). With momentum 0 it is 5 to 9 % and about half of them, and a quarter of the difference is gone (*reversed* again, three splits, 9.5 points); with a quarter of the learning rate the student stays where it was and its references are weaker. So the mining explains a part of the reversal; most of it is that training on alone gains so much.
#
# **What nobody can resolve here** stands in the table above: whether 512 dimensions are enough, whether bits cost two points, whether the number of clusters matters, and most of what `birds` asks, where most differences of fewer than two to six points stay undetected. Not testable at all with these trunks are trained batch norms, SwAV from ImageNet and the papers' own recipes (profile `paper`, never executed to its end).
#
# ## What would a practitioner choose?
#
# **A frozen network and little time (`features`).** Fit *within-class whitening*, a closed form, and stop: in chapter 2 only four joined contrastive models have a
# higher mean MAP@R, and no single loss has (what it is ahead of contrastive, 0.6 points, is itself not resolved). Whoever trains a
# head all the same may take one of the oldest losses. None of the 25 other single losses of chapter 2 has a mean more than 0.1 points above
# contrastive; the only intervals that leave zero out are those of batch-hard triplets and of the two lifted losses with a margin, four points *below*
# it, and of four joined contrastive models, 0.8 above. With ten splits differences to contrastive of one to two and a half points of MAP@R would be detected before
# Holm's correction (Holm, 1979), as `claims.csv` of chapter 2 says; no claim of that chapter about two losses is resolved there after it. A search of
# six trials gains 0.8 points over the defaults in the mean of 26 losses (0.4 in the median), on the very classes that chose the trial, and their order of the losses agrees with the test's only roughly.
#
# **What else was offered.** One bit per component in place of a float costs NormSoftmax (Zhai and Wu, 2019) with 512 dimensions 2.5 points of MAP@R (4.6 of R@1) and
# saves 31 of 32 bits. Self-supervised ranking (Fu et al., 2021) changes next to nothing above frozen features
# ([chapter 4](04_self_supervised_ranking.ipynb)). The student of SLADE (Duan et al., 2021) cannot be told from its own teacher
# ([chapter 5](05_slade.ipynb)); to train that on for as many steps gains 0.7 and 0.6 points in the mean and needs no pool, the pool's true labels gain 0.8 and 0.7.
#
# **A whole network (`birds`).** Fine-tuning adds three points to whitening (with contrastive, Multi-Similarity and NormSoftmax) even at 129 pixels and 150 steps. Five splits (CosFace: four, in chapter 3) do not tell Margin, Multi-Similarity, Proxy-Anchor, NormSoftmax and CosFace from contrastive: the intervals in this chapter's table of `birds` reach
# two to five points of MAP@R to either side, so they may well differ; semi-hard triplets stay behind. As long as nobody knows more, choose what is least trouble: NormSoftmax and CosFace need neither pairs nor a miner, contrastive no vector per class. (The rows of chapter 3
# there still have layer norm for all losses.) Self-supervised ranking changes MAP@R by +0.4 and -0.1 points there, and as much compute without it by +0.6 and +0.8; the intervals of the task leave the paper's gains possible. SLADE's student collapses there with default settings; clusters of the pool taken at their word differ from no pool by +0.5 points, within what chance does.
#
# **What this does not say.** One trunk, one data set of photographs, short schedules. *Not resolved* is most of the ledger, and is not *equal*. That two methods are hard to tell apart with a search and ten splits is
# itself what to know before believing a table with neither.
#
# **Try this.** Set `BASELINE = "within_class_whitening"`: which methods are still right of zero? Set `METRIC = "recall_at_1"`: does the order of the methods stay?
