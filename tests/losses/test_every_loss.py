"""What every loss of the package has in common, the next one too: losses are found, not listed."""

import importlib
import inspect
import itertools
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dmlkit.losses
from dmlkit.training import fit

NUM_CLASSES, DIM = 4, 8
LABELS = torch.arange(16) % NUM_CLASSES

# Of views or crops without labels; of responses of a basis, with clusters.
OTHERWISE_CALLED = {
    *("SelfSupervisedRankingLoss", "SwAVLoss", "SimilarityDistributionLoss"),
    *("LocalCrossEntropyLoss", "GlobalCrossEntropyLoss"),
}


def find_losses():
    """Return all classes named ...Loss of the package, by name."""
    found = {}
    for module in pkgutil.iter_modules(dmlkit.losses.__path__, "dmlkit.losses."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name in OTHERWISE_CALLED:
                continue
            if name.endswith("Loss") and inspect.isclass(value) and issubclass(value, nn.Module):
                found[name] = value
    return found


LOSSES = find_losses()
PROXY_LOSSES = [
    n for n, loss in LOSSES.items() if "embedding_dim" in inspect.signature(loss).parameters
]
PAIR_LOSSES = sorted(LOSSES.keys() - PROXY_LOSSES)
# These add up what positives cost and what negatives cost; all others need both for any cost.
SUMS_OF_TWO_PARTS = {
    "BinomialDevianceLoss",
    "ContrastiveLoss",
    "MultiSimilarityLoss",
    "SimilarityContrastiveLoss",
    "WeightLoss",
}
every_loss = pytest.mark.parametrize("name", sorted(LOSSES))
every_pair_loss = pytest.mark.parametrize("name", PAIR_LOSSES)
every_proxy_loss = pytest.mark.parametrize("name", sorted(PROXY_LOSSES))


def build(name, **settings):
    """Return the loss of that name with its default settings, seeded."""
    torch.manual_seed(0)
    known = {
        "num_classes": NUM_CLASSES,
        "embedding_dim": DIM,
        "num_sampled": NUM_CLASSES - 1,
        "generator": torch.Generator().manual_seed(0),
    }
    wanted = inspect.signature(LOSSES[name]).parameters
    return LOSSES[name](**{key: known[key] for key in known if key in wanted}, **settings)


def raw_rows(rows=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIM, generator=generator).requires_grad_()


def test_the_losses_are_found():
    assert len(LOSSES) >= 4
    assert {"ContrastiveLoss", "NormSoftmaxLoss", "TripletLoss"} <= LOSSES.keys()
    assert "NormSoftmaxLoss" in PROXY_LOSSES and "TripletLoss" in PAIR_LOSSES
    assert LOSSES.keys() >= SUMS_OF_TWO_PARTS


# --- Its interface


@every_loss
def test_it_is_called_with_embeddings_labels_and_pairs_by_name(name):
    parameters = inspect.signature(LOSSES[name].forward).parameters
    assert list(parameters) == ["self", "embeddings", "labels", "pairs"]
    assert parameters["pairs"].kind is inspect.Parameter.KEYWORD_ONLY


@every_loss
def test_its_settings_are_given_by_name_and_kept_under_that_name(name):
    loss_fn = build(name)
    for setting, parameter in inspect.signature(LOSSES[name]).parameters.items():
        if setting not in ("num_classes", "embedding_dim", "num_sampled", "generator"):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert getattr(loss_fn, setting) == parameter.default


@every_loss
def test_its_documentation_says_where_it_comes_from_and_what_its_arguments_are(name):
    module, text = inspect.getmodule(LOSSES[name]), inspect.getdoc(LOSSES[name])
    assert "https://" in module.__doc__ + text or "doi:" in module.__doc__ + text
    for setting in inspect.signature(LOSSES[name]).parameters:
        assert f"\n    {setting}: " in text


@every_proxy_loss
def test_it_refuses_pairs_and_unknown_classes_in_one_sentence(name):
    loss_fn, embeddings = build(name), F.normalize(raw_rows())
    none = torch.zeros(len(LABELS), len(LABELS), dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{name} compares with proxies, not pairs"):
        loss_fn(embeddings, LABELS, pairs=(none, none))
    with pytest.raises(ValueError, match=f"num_classes={NUM_CLASSES}; relabel"):
        loss_fn(embeddings, LABELS + 1)


@every_pair_loss
def test_it_refuses_masks_of_another_shape(name):
    none = torch.zeros(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="a pair mask is"):
        build(name)(F.normalize(raw_rows()), LABELS, pairs=(none, none))


# --- It trains


def noisy_batches():
    """Endless batches of noisy class centres, four images of each class."""
    generator = torch.Generator().manual_seed(0)
    while True:
        noise = torch.randn(len(LABELS), NUM_CLASSES, generator=generator)
        yield noise + torch.eye(NUM_CLASSES)[LABELS], LABELS


@every_loss
def test_every_parameter_of_it_moves_in_training_and_is_saved(name):
    loss_fn = build(name)
    model = nn.Linear(NUM_CLASSES, DIM)
    start = {key: value.detach().clone() for key, value in loss_fn.named_parameters()}
    own_rate = {"params": loss_fn.parameters(), "lr": 0.1}
    optimizer = torch.optim.Adam([{"params": model.parameters(), "lr": 0.01}, own_rate])

    def compute_loss(batch):
        features, labels = batch
        return loss_fn(F.normalize(model(features)), labels)

    fitted = fit([model, loss_fn], noisy_batches(), compute_loss, optimizer, 3)

    assert start.keys() <= fitted.best_states[1].keys()
    for key, value in loss_fn.named_parameters():
        assert (value != start[key]).all()
        assert torch.equal(fitted.best_states[1][key], value)


@every_loss
def test_gradient_descent_draws_classes_together_and_apart(name):
    # With a centre for each image, SoftTriple is content with images where they are.
    settings = {"centres_per_class": 2} if name == "SoftTripleLoss" else {}
    raw, loss_fn = raw_rows(), build(name, **settings)
    same = LABELS[:, None] == LABELS
    is_self = torch.eye(len(LABELS), dtype=torch.bool)

    def contrast():
        rows = F.normalize(raw.detach())
        similarity = rows @ rows.T
        return similarity[same & ~is_self].mean() - similarity[~same].mean()

    before = contrast()
    optimizer = torch.optim.Adam([raw, *loss_fn.parameters()], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        loss_fn(F.normalize(raw), LABELS).backward()
        optimizer.step()
    assert contrast() > before + 0.1


# --- Batches that lack something


def loss_and_gradient(name, raw, labels, **options):
    """Return the loss and the gradient of the rows; anomaly mode finds a NaN masked later."""
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        loss = build(name)(F.normalize(raw), labels, **options)
        loss.backward()
    assert loss.shape == () and loss.isfinite() and raw.grad.isfinite().all()
    return loss.item(), raw.grad


LACKING = {
    "no positives": torch.arange(NUM_CLASSES),
    "no negatives": torch.zeros(NUM_CLASSES, dtype=torch.long),
    "one image": torch.tensor([2]),
}


@pytest.mark.parametrize("lacking", LACKING)
@every_loss
def test_a_batch_that_lacks_something_is_finite_and_free_where_nothing_can_be_compared(
    name, lacking
):
    labels = LACKING[lacking]
    loss, gradient = loss_and_gradient(name, raw_rows(len(labels)), labels)
    needs_both = name in PAIR_LOSSES and name not in SUMS_OF_TWO_PARTS
    if needs_both or (name in PAIR_LOSSES and lacking == "one image"):
        assert loss == 0
        assert (gradient == 0).all()


@every_pair_loss
def test_without_pairs_it_is_a_zero_with_zero_gradient(name):
    none = torch.zeros(len(LABELS), len(LABELS), dtype=torch.bool)
    loss, gradient = loss_and_gradient(name, raw_rows(), LABELS, pairs=(none, none))
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("labels", [LABELS, *LACKING.values()], ids=["all classes", *LACKING])
@every_loss
def test_identical_embeddings_have_a_finite_gradient(name, labels):
    raw = raw_rows(1).detach().repeat(len(labels), 1).requires_grad_()
    loss_and_gradient(name, raw, labels)


# --- Numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
@every_loss
def test_it_is_finite_and_exact_under_autocast(name, identical, dtype):
    raw = raw_rows(1).detach().repeat(len(LABELS), 1) if identical else raw_rows().detach()
    embeddings = F.normalize(raw).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = build(name)(embeddings, LABELS)
    loss.backward()

    assert loss.isfinite() and embeddings.grad.isfinite().all()
    assert torch.equal(loss, build(name)(embeddings.detach().float(), LABELS))


@every_loss
def test_a_nan_shows(name):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[5, 0] = torch.nan
    assert build(name)(embeddings, LABELS).isnan()


def one_negative_each():
    """Return pairs that leave a loss that draws negatives nothing to draw."""
    same = LABELS[:, None] == LABELS
    negatives = torch.zeros_like(same)
    negatives[torch.arange(len(LABELS)), (torch.arange(len(LABELS)) + 1) % len(LABELS)] = True
    return same & ~torch.eye(len(LABELS), dtype=torch.bool), negatives


@every_loss
def test_the_order_of_the_batch_does_not_matter(name):
    embeddings = F.normalize(raw_rows())
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(1))
    options, reordered = {}, {}
    if "generator" in inspect.signature(LOSSES[name]).parameters:
        options = {"pairs": one_negative_each()}
        reordered = {"pairs": tuple(mask[order][:, order] for mask in options["pairs"])}

    loss = build(name)(embeddings, LABELS, **options)

    torch.testing.assert_close(build(name)(embeddings[order], LABELS[order], **reordered), loss)
    assert loss > 0


@every_pair_loss
def test_turning_the_space_does_not_matter(name):
    embeddings = F.normalize(raw_rows())
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    loss = build(name)(embeddings, LABELS)
    torch.testing.assert_close(build(name)(embeddings @ turn, LABELS), loss)
    assert loss > 0


@every_pair_loss
def test_giving_every_pair_changes_nothing_where_it_mines_none(name):
    same = LABELS[:, None] == LABELS
    every = same & ~torch.eye(len(LABELS), dtype=torch.bool), ~same
    embeddings = F.normalize(raw_rows())
    if name != "HardMiningLoss":
        assert torch.equal(
            build(name)(embeddings, LABELS, pairs=every), build(name)(embeddings, LABELS)
        )


def test_no_two_losses_are_the_same():
    # A class is absent, as sampling classes makes no difference while all are in the batch.
    embeddings, labels = F.normalize(raw_rows()), LABELS % (NUM_CLASSES - 1)
    values = {name: build(name)(embeddings, labels).item() for name in LOSSES}
    for one, other in itertools.combinations(values, 2):
        assert values[one] != pytest.approx(values[other]), f"{one} and {other}"
