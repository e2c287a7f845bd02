"""Two processes that share a run find what one finds. See also test_torchrun."""

import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.functional import normalize

from dmlkit import losses
from dmlkit.batches import image_batches
from dmlkit.chapters import parameter_defaults
from dmlkit.datasets import ImageSet
from dmlkit.datasets.cache import cached_arrays
from dmlkit.evaluation import embed
from dmlkit.losses.swav import EmbeddingQueue
from dmlkit.miners import multi_similarity_miner
from dmlkit.processes import (
    check_shares,
    in_parallel,
    mean_of_all,
    of_all,
    of_first,
    rank,
    share_buffers,
    share_of,
    wait_for_all,
)
from dmlkit.results import ChapterResults
from dmlkit.samplers import MPerClassSampler, RandomSampler
from dmlkit.search import Trial
from dmlkit.seeding import generator_of_images
from dmlkit.training import fit
from tests.losses.test_every_loss import LABELS, LOSSES, build

IMAGES = torch.randint(256, (16, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
SET = ImageSet(IMAGES, LABELS, tuple("abcd"), "", torch.arange(16))


def as_floats(images, sizes=None):
    return images.flatten(1).float() / 255


def new_model(out_features=8):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, out_features), nn.Tanh())


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Return what the functions of this file returned in each of two processes that share a run."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_one_of_two, (folder,), nprocs=2)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


def _one_of_two(number, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2)
    found = {
        "losses": {name: loss_and_gradients(name) for name in [*LOSSES, *OTHERS]},
        "trained": {still_steps: trained(still_steps) for still_steps in (0, 2)},
        "seen": seen(),
        "agreements": agreements(folder),
    }
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


# Losses that are called otherwise than with embeddings and labels, as (embeddings, labels) -> loss.
def of_crops(embeddings, labels):
    loss, queue = losses.SwAVLoss(), EmbeddingQueue(12, 4)
    crops = embeddings.unflatten(1, (2, 4)).transpose(0, 1)  # two crops, with prototypes as axes
    for _ in range(2):
        queue.push(crops.detach())
    return loss(crops, queue.embeddings)


def of_responses(loss_class, *arguments):
    """Return a loss with running statistics, at its second batch."""
    loss = loss_class(*arguments)

    def compute(responses, labels):
        loss(responses.detach().flip(0), labels)
        return loss(responses, labels)

    return compute


def of_views(embeddings, labels):
    return losses.SelfSupervisedRankingLoss()(normalize(embeddings.unflatten(1, (4, 2)), dim=-1))


def mined(embeddings, labels):
    pairs = multi_similarity_miner(embeddings, labels)
    return losses.MultiSimilarityLoss()(embeddings, labels, pairs=pairs)


OTHERS = {
    "SwAV": lambda: of_crops,
    "similarity distribution": lambda: of_responses(losses.SimilarityDistributionLoss),
    "local cross-entropy": lambda: of_responses(losses.LocalCrossEntropyLoss),
    "global cross-entropy": lambda: of_responses(losses.GlobalCrossEntropyLoss, 4, 8),
    "ranking": lambda: of_views,
    "mined": lambda: mined,
}


def loss_and_gradients(name):
    """Return the loss of one batch, and gradients of the model and of what the loss owns."""
    model = new_model()
    loss_fn = OTHERS[name]() if name in OTHERS else build(name)
    torch.manual_seed(7)  # of draws within the loss
    modules = [model, loss_fn] if isinstance(loss_fn, nn.Module) else [model]

    def compute_loss(batch):
        embeddings, labels = normalize(model(batch[0])), of_all(batch[1])
        gathered = of_all(embeddings)
        # A mean over images, each of which is alone with its views, needs no others.
        return loss_fn(embeddings if name == "ranking" else gathered, labels)

    positions = share_of(torch.arange(16))
    loss_of = in_parallel(modules, compute_loss)
    loss = loss_of((as_floats(IMAGES[positions]), LABELS[positions]))
    loss.backward()
    learned = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return [mean_of_all(loss.detach()), *learned]


@pytest.mark.parametrize("name", [*LOSSES, *OTHERS])
def test_every_loss_has_the_value_and_gradients_of_one_process(name, of_two):
    alone = loss_and_gradients(name)
    assert any(gradient.abs().max() > 1e-4 for gradient in alone[1:])
    for found in of_two:
        for ours, expected in zip(found["losses"][name], alone, strict=True):
            # Sums in another order differ by a share of their largest terms, which may cancel.
            atol = 1e-5 * expected.abs().max().item()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=atol)


def trained(still_steps):
    """Train for a few steps, a part of the model still at first, and return all that came out."""
    model, loss_fn = new_model(), build("NormSoftmaxLoss")
    sampler = MPerClassSampler(LABELS, batch_size=8, images_per_class=2, seed=5)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=0.01)
    fitted = fit(
        [model, loss_fn],
        image_batches(SET, sampler, as_floats, torch.device("cpu")),
        lambda batch: loss_fn(of_all(normalize(model(batch[0]))), of_all(batch[1])),
        optimizer,
        6,
        still_modules=[model[0]],
        still_steps=still_steps,
        measure_every=3,
        observe=lambda: {
            "sum": embed(model, SET, as_floats, device=torch.device("cpu")).sum().item()
        },
    )
    return [fitted.history, {k: v for s in fitted.best_states for k, v in s.items()}]


@pytest.mark.parametrize("still_steps", [0, 2])
def test_a_training_run_comes_out_as_with_one_process(of_two, still_steps):
    alone = trained(still_steps)
    assert [entry["images_seen"] for entry in alone[0]] == [24, 48]
    for found in of_two:
        torch.testing.assert_close(found["trained"][still_steps], alone, rtol=1e-4, atol=1e-5)


def seen():
    """Return what this process sees of a few batches and of a set that is embedded in parts."""
    by_class = MPerClassSampler(LABELS, batch_size=8, images_per_class=2, seed=5)
    at_random = RandomSampler(16, batch_size=8, seed=5)
    shares = [[share_of(next(sampler)) for _ in range(3)] for sampler in (by_class, at_random)]
    odd = SET.keep_images(torch.arange(16) != 3)
    embedded = embed(nn.Identity(), odd, as_floats, device=torch.device("cpu"), batch_size=4)
    draws = torch.rand(3, generator=generator_of_images(1))
    return {"shares": shares, "embedded": embedded, "draws": draws}


def test_processes_see_different_images_and_together_those_of_one(of_two):
    first, second = (found["seen"] for found in of_two)
    alone = seen()
    for one, other, whole in zip(first["shares"], second["shares"], alone["shares"], strict=True):
        joined = [torch.cat(pair) for pair in zip(one, other, strict=True)]
        assert all(map(torch.equal, joined, whole))
        assert all(
            len(set(a.tolist()) & set(b.tolist())) == 0 for a, b in zip(one, other, strict=True)
        )
    # Fifteen images are no multiple of two: one process embeds one less.
    assert torch.equal(first["embedded"], alone["embedded"])
    assert torch.equal(second["embedded"], alone["embedded"])
    assert torch.equal(first["draws"], alone["draws"])
    assert not torch.equal(second["draws"], alone["draws"])


def draw(arrays):
    arrays["drawn"][:] = torch.rand(3, generator=generator_of_images(1)).numpy()


def agreements(folder):
    """Return what processes tell each other that saw different things."""
    os.environ["DMLKIT_CACHE"] = str(folder / "cache")
    folder = folder / "results"
    told = {"decided": of_first(rank() == 0), "value": of_first({"rank": rank()})}
    norm = nn.BatchNorm1d(2)
    norm(torch.full((3, 2), float(rank() + 1)))
    share_buffers([norm])
    told["running_mean"] = norm.running_mean
    results_of = results(folder)
    search = lambda: [Trial({"rank": rank()}, {1: 0.5})]  # noqa: E731
    trials = [results_of.trials("margin", 0, "data", search) for _ in range(2)]
    told["trials"] = [trial.settings for found in trials for trial in found]
    cached = cached_arrays("shared", {"drawn": ((3,), np.float32)}, draw)["drawn"]
    told["cached"] = cached.clone()
    run = results_of.run("margin", 0, "data")
    try:
        with results_of.attempt(run):
            raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        told["memory"] = str(error)
    told["mean"] = mean_of_all(torch.tensor([float(rank()), math.nan if rank() else 0.0]))
    try:
        check_shares(3 - rank())
    except ValueError as error:
        told["refused"] = str(error)
    alone = nn.Linear(2, 1)
    try:
        in_parallel([alone], lambda batch: alone(batch[0]).sum())((torch.ones(1, 2),))
    except RuntimeError as error:
        told["ungathered"] = str(error)
    made = results(folder).stage("teacher", 0, "data", lambda: {"made by": rank()})
    again = results(folder).stage("teacher", 0, "data", lambda: {"made by": "nobody"})
    wait_for_all()
    return told | {"stages": [made, again], "files": len(list(folder.rglob("*.pt")))}


def results(folder):
    parameters = parameter_defaults("02_baseline_losses") | {"RESULTS_DIR": str(folder)}
    return ChapterResults("02_baseline_losses", parameters)


def test_the_first_process_decides_and_writes(of_two):
    for told in (found["agreements"] for found in of_two):
        assert told["decided"] is True and told["value"] == {"rank": 0}
        assert told["running_mean"].tolist() == pytest.approx([0.1, 0.1])
        assert told["trials"] == [{"rank": 0}] * 2
        assert torch.equal(told["cached"], torch.rand(3, generator=generator_of_images(1)))
        assert told["memory"].startswith("margin, seed 0: the GPU has too little memory")
        assert told["mean"][0] == 0.5 and told["mean"][1].isnan()
        assert told["refused"].startswith("batches of 5 images cannot be shared equally by 2")
        assert told["ungathered"].startswith("the loss is of one process's share of the batch")
        assert told["stages"] == [{"made by": 0}] * 2
        assert told["files"] == 1


def test_one_process_needs_no_other():
    rows = torch.arange(6.0)
    compute = object()
    assert torch.equal(share_of(rows), rows)
    assert of_all(rows) is rows
    assert in_parallel([], compute) is compute
    assert of_first(rows) is rows
    check_shares(3)
    wait_for_all()
