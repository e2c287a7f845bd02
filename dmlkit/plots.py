"""The figures of the book, in one style. Each function returns the figure it drew."""

import textwrap
import warnings
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
from torch import Tensor

from dmlkit.datasets import ImageSet

RIGHT, WRONG = sns.color_palette("colorblind")[2], sns.color_palette("colorblind")[3]


def set_style() -> None:
    """Apply the book's style: white, colour-blind-safe, readable in print; tables uncut."""
    for limit in ("max_colwidth", "max_rows", "max_columns"):
        pd.set_option(f"display.{limit}", None)
    sns.set_theme("notebook", style="whitegrid", palette="colorblind")
    plt.rcParams["figure.constrained_layout.use"] = True


def learning_curves(rows: pd.DataFrame, methods: list[str]) -> Figure:
    """Draw training loss and validation MAP@R against images seen, a line per method.

    A band spans all replicates. Runs without validation show the loss alone.

    Args:
        rows: rows of runs, each with its ``history``.
        methods: trained methods, in the order of their colours.
    """
    measured = pd.concat(
        [
            # Losses have no common unit, so each is shown relative to where its run began.
            pd.DataFrame(row.history).assign(
                method=row.method, loss=lambda history: history["loss"] / history["loss"].iloc[0]
            )
            for row in rows[rows["method"].isin(methods)].itertuples()
        ],
        ignore_index=True,
    )
    panels = {"loss": "training loss / its first value"}
    if "validation_map_at_r" in measured:
        measured["validation_map_at_r"] *= 100
        panels["validation_map_at_r"] = "MAP@R of validation classes, %"
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.8), squeeze=False)
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        sns.lineplot(
            measured,
            x="images_seen",
            y=column,
            hue="method",
            style="method",
            hue_order=methods,
            style_order=methods,
            errorbar=("pi", 100),
            err_kws={"alpha": 0.12},
            ax=axis,
        )
        axis.set(xlabel="images seen", ylabel=label)
        axis.get_legend().remove()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def sweep_curves(lines: dict[str, pd.DataFrame], label: str, *, log: bool = False) -> Figure:
    """Draw Recall@1 against a parameter, with 95 % intervals.

    Args:
        lines: name of a line to a table with ``mean``, ``low`` and ``high``, percent, by value of
            the parameter.
        label: what the parameter is.
        log: put the values on a logarithmic axis; else side by side, in their order.
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.8))
    for name, line in lines.items():
        at = line.index.astype(float) if log else [str(value) for value in line.index]
        spans = [line["mean"] - line["low"], line["high"] - line["mean"]]
        axis.errorbar(at, line["mean"], yerr=spans, marker="o", capsize=3, label=name)
    if log:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel=label, ylabel="Recall@1, %")
    if len(lines) > 1:
        axis.legend()
    return figure


def lines(table: pd.DataFrame, label: str, value: str) -> Figure:
    """Draw one line per column of ``table`` over its index, side by side in its order.

    Args:
        table: values by what the horizontal axis shows.
        label: what the index is.
        value: what the values are.
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for number, (name, column) in enumerate(table.items()):
        axis.plot(table.index.astype(str), column, label=name, marker="osv^D*"[number % 6])
    axis.set(xlabel=label, ylabel=value)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def differences(table: pd.DataFrame, label: str) -> Figure:
    """Draw differences with their 95 % intervals, a line each, grouped by the first index level.

    Args:
        table: ``mean``, ``low`` and ``high`` by group and name.
        label: what the differences are of.
    """
    groups = table.index.get_level_values(0).unique()
    size = (6.5, 0.28 * len(table) + 0.3 * len(groups) + 0.8)
    heights = [len(table.loc[group]) for group in groups]
    figure, axes = plt.subplots(
        len(groups), figsize=size, sharex=True, squeeze=False, height_ratios=heights
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        of_group = table.loc[group].iloc[::-1]  # the first line on top
        spans = [of_group["mean"] - of_group["low"], of_group["high"] - of_group["mean"]]
        axis.errorbar(of_group["mean"], of_group.index.astype(str), xerr=spans, fmt="o", capsize=3)
        axis.axvline(0, color="0.4", linewidth=1)
        axis.set_ylim(-0.6, len(of_group) - 0.4)
        axis.set_title(group, loc="left", fontsize=9)
    axes[-1, 0].set_xlabel(label)
    return figure


def beside_published(claims: pd.DataFrame) -> Figure:
    """Draw our difference of each claim, with its 95 % interval, and the published one.

    Args:
        claims: ``claim``, ``statement`` and, in points, ``difference``, the ends of its interval
            ``low`` and ``high``, and those of what was published ``published_low`` and
            ``published_high``, equal where a single number was printed.
    """
    claims = claims.iloc[::-1]  # the first line on top
    figure, axis = plt.subplots(figsize=(9, 0.3 * len(claims) + 1.2))
    at, mean = np.arange(len(claims)), claims["difference"]
    spans = [mean - claims["low"], claims["high"] - mean]
    axis.errorbar(mean, at, xerr=spans, fmt="o", capsize=3, label="this book")
    ends = claims["published_low"], claims["published_high"]
    axis.hlines(at, *ends, color="C1", linewidth=2)
    for number, end in enumerate(ends):
        label = None if number else "published"
        axis.scatter(end, at, marker="D", color="C1", zorder=3, label=label)
    axis.axvline(0, color="0.4", linewidth=1)
    names = [f"{c.claim}: {textwrap.shorten(c.statement, 70)}" for c in claims.itertuples()]
    axis.set_yticks(at, names, fontsize=8)
    axis.set(xlabel="difference, points", ylim=(-0.7, len(claims) - 0.3))
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def cost_and_result(methods: pd.DataFrame, value: str) -> Figure:
    """Draw what methods retrieve against their training time, and name those nobody beats in both.

    Args:
        methods: ``seconds`` of one run, ``value`` in percent and the ``group`` that shares a
            colour, by method; those of 0 seconds become horizontal lines.
        value: what the values are.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.8))
    trained = methods[methods["seconds"] > 0].sort_values(["seconds", "value"])
    for number, (group, of_group) in enumerate(trained.groupby("group", sort=True)):
        marker = "osv^D*"[number % 6]
        axis.scatter(of_group["seconds"], of_group["value"], label=group, marker=marker, zorder=2)
    best = -np.inf
    for name, method in trained.iterrows():
        if method["value"] > best:
            best = method["value"]
            at = (method["seconds"], method["value"])
            halo = [withStroke(linewidth=2.5, foreground="white")]  # legible before other marks
            style = {"fontsize": 8, "path_effects": halo, "zorder": 3}
            # To the upper left, where no dot can be; slanted, names of neighbours do not overlap.
            slant = {"rotation": -35, "rotation_mode": "anchor", "ha": "right", "va": "bottom"}
            axis.annotate(name, at, (-3, 3), textcoords="offset points", **style, **slant)
    axis.set(xlabel="training time of one run, seconds", ylabel=value)
    axis.margins(x=0.2, y=0.15)  # for the names
    untrained = methods[methods["seconds"] == 0].sort_values("value")
    for method in untrained.itertuples():
        axis.axhline(method.value, color="0.5", linestyle="--", linewidth=1, zorder=1)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    height = -np.inf
    for name, method in untrained.iterrows():  # from below, each name above the one before
        height = max(height + 0.04, (method["value"] - low) / (high - low))
        axis.annotate(name, (1, height), xycoords="axes fraction", fontsize=8, va="center")
    if len(trained):
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks("{x:g}")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def two_distributions(runs: dict[str, pd.DataFrame]) -> Figure:
    """Draw running means of two kinds of pair over training, and a standard deviation around.

    Args:
        runs: title of a panel to ``mean_`` and ``variance_`` of ``positive`` and ``negative`` pairs
            by step.
    """
    figure, axes = plt.subplots(
        1, len(runs), figsize=(1 + 3 * len(runs), 3), sharey=True, squeeze=False
    )
    for axis, (title, history) in zip(axes[0], runs.items(), strict=True):
        for kind, colour in (("positive", "C2"), ("negative", "C3")):
            mean, deviation = history[f"mean_{kind}"], history[f"variance_{kind}"] ** 0.5
            axis.plot(history.index, mean, color=colour, label=f"{kind} pairs")
            span = mean - deviation, mean + deviation
            axis.fill_between(history.index, *span, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=title.replace("_", " "), xlabel="step")
    axes[0, 0].set_ylabel("similarity")
    axes[0, 0].legend(fontsize=8)
    return figure


def gradient_arrows(
    points: Tensor,
    labels: Tensor,
    gradients: dict[str, Tensor],
    proxies: dict[str, Tensor],
    *,
    columns: int = 4,
) -> Figure:
    """Draw where one step of gradient descent would move points on a circle, a panel per loss.

    Args:
        points: (N, 2) of unit length.
        labels: (N,) classes.
        gradients: title to (N, 2) gradient; its part along the circle is drawn, the longest of a
            panel with the same length in all.
        proxies: title to (C, 2) a proxy per class, for losses that have them.
        columns: panels in a row.
    """
    rows = -(-len(gradients) // columns)
    size = (2.2 * columns, 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    colours = np.array(sns.color_palette("colorblind"))
    for axis in axes.flat[len(gradients) :]:
        axis.set_visible(False)
    for axis, (title, gradient) in zip(axes.flat, gradients.items(), strict=False):
        along = -(gradient - (gradient * points).sum(dim=1, keepdim=True) * points)
        longest = along.norm(dim=1).max().clamp_min(torch.finfo(along.dtype).tiny)
        arrows = 0.6 * along / longest
        axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="lightgrey"))
        axis.scatter(*points.T.numpy(), c=colours[labels], s=40, zorder=3)
        axis.quiver(
            *points.T.numpy(),
            *arrows.T.numpy(),
            color=colours[labels],
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.012,
            minlength=0,
            zorder=2,
        )
        if title in proxies:
            of_class = colours[: len(proxies[title])]
            axis.scatter(*proxies[title].T.numpy(), c=of_class, marker="x", s=60, zorder=4)
        axis.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[])
        axis.set_title(title.replace("_", " "), fontsize=9)
        axis.grid(visible=False)
    return figure


def embedding_maps(
    panels: dict[str, Tensor], labels: Tensor, *, num_classes: int = 10, seed: int = 0
) -> Figure:
    """Draw UMAP maps of several embeddings of the same images side by side, three in a row.

    Args:
        panels: title to (N, D) unit embeddings.
        labels: (N,) classes.
        num_classes: how many classes are shown, the first ones: more colours cannot be told apart.
        seed: UMAP's seed. A fixed seed makes it single-threaded and repeatable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its progress bars ask for widgets that nobody needs here
        import umap  # only this figure needs it, and it takes seconds

    shown = labels < num_classes
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (5 * columns, 4.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, embeddings) in zip(axes.flat, panels.items(), strict=False):
        neighbours = min(15, int(shown.sum()) - 1)
        mapper = umap.UMAP(
            n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, min_dist=0.2
        )
        points = mapper.fit_transform(embeddings[shown].numpy())
        sns.scatterplot(
            x=points[:, 0],
            y=points[:, 1],
            hue=labels[shown].numpy(),
            style=labels[shown].numpy() % 5,
            palette="tab10",
            s=34,
            linewidth=0.3,
            legend=False,
            ax=axis,
        )
        axis.set(title=title, xticks=[], yticks=[], xlabel="", ylabel="")
    return figure


def nearest_neighbours(
    image_set: ImageSet, neighbours: Tensor, queries: Tensor, *, count: int = 6
) -> Figure:
    """Show query images, each followed by its nearest neighbours framed right or wrong.

    Args:
        image_set: images (N, 3, S, S) uint8.
        neighbours: (Q, K) positions of the neighbours of each query in ``queries``.
        queries: (Q,) positions of the queries shown, a row each.
        count: neighbours shown, at most K.
    """
    count = min(count, neighbours.shape[1])
    size = (0.8 * (count + 1), 0.9 * len(queries) + 0.3)
    figure, axes = plt.subplots(len(queries), count + 1, figsize=size, squeeze=False)
    for line, query in zip(axes, range(len(queries)), strict=True):
        shown = torch.cat([queries[query : query + 1], neighbours[query, :count]])
        labels, images = image_set.labels[shown], image_set.gather(shown)
        for rank, (axis, image) in enumerate(zip(line, images, strict=True)):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            is_right = labels[rank] == labels[0]
            colour = ("black", RIGHT, WRONG)[0 if rank == 0 else 1 if is_right else 2]
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=3, visible=True)
            if rank and query == 0:
                axis.set_title(str(rank), fontsize=9)
            # A sign beside the colour, for print and for readers who do not see the colours.
            if rank:
                axis.set_xlabel("✓" if is_right else "✗", color=colour, fontsize=9, labelpad=1)
    axes[0, 0].set_title("query", fontsize=9)
    return figure


def sample_images(image_set: ImageSet, *, classes: int = 6, per_class: int = 8) -> Figure:
    """Show the first images of the first classes, as many as there are, a class per row."""
    labels = image_set.labels
    classes = min(classes, image_set.num_classes)
    columns = min(per_class, int(labels.bincount()[:classes].min()))
    figure, axes = plt.subplots(
        classes, columns, figsize=(0.75 * columns, 0.75 * classes), squeeze=False
    )
    for label, line in enumerate(axes):
        positions = (labels == label).nonzero().squeeze(1)[:columns]
        for axis, image in zip(line, image_set.gather(positions), strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
    return figure


def image_grid(images: Tensor, titles: Sequence[str]) -> Figure:
    """Show rows of images under a title per column.

    Args:
        images: (rows, columns, 3, S, S) float in [0, 1].
        titles: of the columns.
    """
    rows, columns = images.shape[:2]
    size = (0.95 * columns, 0.95 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for line, shown in zip(axes, images, strict=True):
        for axis, image in zip(line, shown, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def spread_queries(recall: np.ndarray, count: int) -> Tensor:
    """Return ``count`` query positions, half answered rightly at rank 1 and half wrongly.

    Evenly spaced in each half, so the picture shows neither the best nor the worst on purpose.

    Args:
        recall: (Q,) Recall@1 of each query, 0 or 1.
        count: number of queries, fewer where a half has not enough.
    """
    picked = []
    for wanted, number in ((1, count - count // 2), (0, count // 2)):
        positions = np.flatnonzero(recall == wanted)
        steps = np.linspace(0, len(positions) - 1, min(number, len(positions)))
        picked.append(positions[steps.round().astype(int)])
    return torch.from_numpy(np.concatenate(picked))
