"""MarginLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses import hyperparameters
from dmlkit.losses.margin import MarginLoss
from dmlkit.miners import all_pairs, distance_weighted_triplets

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
SETTINGS = [(0.2, 1.2), (0.5, 0.9)]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(num_classes=None, seed=0, **settings):
    """A loss in double precision that draws the triplets of ``drawn``."""
    return MarginLoss(num_classes=num_classes, generator=seeded(seed), **settings).double()


def drawn(embeddings, labels, seed=0):
    return distance_weighted_triplets(embeddings.detach(), labels, generator=seeded(seed))


def reference_loss(embeddings, triplets, boundary, margin):
    """Both hinges, one triplet at a time; ``boundary`` by anchor."""
    hinges = []
    for a, p, n in zip(*(index.tolist() for index in triplets), strict=True):
        d_ap = (embeddings[a] - embeddings[p]).norm().item()
        d_an = (embeddings[a] - embeddings[n]).norm().item()
        hinges += [max(d_ap - boundary[a] + margin, 0), max(boundary[a] - d_an + margin, 0)]
    active = [hinge for hinge in hinges if hinge > 0]
    return sum(active) / len(active)


@pytest.mark.parametrize(("margin", "boundary"), SETTINGS)
def test_matches_the_equation_triplet_by_triplet(margin, boundary):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, drawn(embeddings, LABELS), [boundary] * 8, margin)

    loss = build(margin=margin, initial_boundary=boundary)(embeddings, LABELS)

    assert loss.item() == pytest.approx(expected)


def test_with_classes_the_boundary_is_that_of_the_anchor():
    embeddings, loss_fn = F.normalize(raw_rows()), build(4)
    loss_fn.boundary.data = torch.tensor([0.8, 1.0, 1.3, 5.0], dtype=torch.float64)
    of_anchor = loss_fn.boundary[LABELS].tolist()
    expected = reference_loss(embeddings, drawn(embeddings, LABELS), of_anchor, 0.2)

    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_classes", [None, 6], ids=["one boundary", "a boundary per class"])
@pytest.mark.parametrize(("margin", "boundary"), SETTINGS)
def test_value_and_gradients_agree_with_pytorch_metric_learning(margin, boundary, num_classes):
    labels = torch.arange(24) % 6
    ours, theirs = raw_rows(24), raw_rows(24)
    loss_fn = build(num_classes, margin=margin, initial_boundary=boundary)
    reference = reference_losses.MarginLoss(
        margin, beta=boundary, learn_beta=True, num_classes=num_classes
    )
    reference.beta.data = reference.beta.data.double()
    triplets = drawn(F.normalize(theirs), labels)

    loss = loss_fn(F.normalize(ours), labels)
    expected = reference(F.normalize(theirs), labels, triplets)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(loss_fn.boundary.grad, reference.beta.grad)


def test_the_weighed_boundary_agrees_with_pytorch_metric_learning():
    ours, theirs = raw_rows(), raw_rows()
    reference = reference_losses.MarginLoss(nu=0.3, learn_beta=True)
    triplets = drawn(F.normalize(theirs), LABELS)

    loss = build(boundary_weight=0.3)(F.normalize(ours), LABELS)

    # The library's boundary is in single precision.
    torch.testing.assert_close(
        loss, reference(F.normalize(theirs), LABELS, triplets), rtol=1e-6, atol=0
    )


def test_the_weighed_boundary_per_class_is_its_mean_over_triplets():
    embeddings, boundary = F.normalize(raw_rows()), torch.tensor([0.8, 1.0, 1.3, 5.0])
    plain, weighed = build(4), build(4, boundary_weight=0.5)
    plain.boundary.data = weighed.boundary.data = boundary.double()

    # Class 0 and 1 have two positive pairs each, class 2 has six, class 3 none.
    mean = (2 * 0.8 + 2 * 1.0 + 6 * 1.3) / 10
    difference = weighed(embeddings, LABELS) - plain(embeddings, LABELS)
    assert difference.item() == pytest.approx(0.5 * mean, rel=1e-6)


def test_three_points_on_the_circle_by_hand():
    # At 0, 90 and 180 degrees. From 0: positive at sqrt 2, negative at 2. From 90: positive at
    # sqrt 2, negative at sqrt 2. Each anchor has but one negative, so the draw is certain.
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    loss = MarginLoss(margin=0.3, initial_boundary=1.5)(embeddings, torch.tensor([0, 0, 1]))

    # Both pull by sqrt 2 - 1.5 + 0.3; the push is 1.5 - 2 + 0.3 < 0, and 1.5 - sqrt 2 + 0.3.
    pull, push = math.sqrt(2) - 1.2, 1.8 - math.sqrt(2)
    assert loss.item() == pytest.approx((2 * pull + push) / 3)


def test_has_the_analytic_gradient():
    raw, boundary = raw_rows(dim=4), torch.tensor([1.1], dtype=torch.float64, requires_grad=True)

    def loss(rows, boundary):
        loss_fn = build()  # draws the same each time
        return torch.func.functional_call(
            loss_fn, {"boundary": boundary}, (F.normalize(rows), LABELS)
        )

    assert torch.autograd.gradcheck(loss, (raw, boundary))


def test_settings_are_those_of_the_authors_code():
    stated = {"margin": 0.2, "initial_boundary": 1.2, "learn_boundary": True}
    stated |= {"boundary_weight": 0.0, "nearest": 0.5, "farthest": 1.4}
    assert hyperparameters(MarginLoss()) == stated
    embeddings = F.normalize(raw_rows())
    assert torch.equal(build()(embeddings, LABELS), build(**stated)(embeddings, LABELS))


@pytest.mark.parametrize("num_classes", [None, 4])
def test_the_boundary_is_learned_unless_it_is_said_to_stay(num_classes):
    learned = MarginLoss(num_classes=num_classes)
    fixed = MarginLoss(num_classes=num_classes, learn_boundary=False)
    assert [name for name, _ in learned.named_parameters()] == ["boundary"]
    assert torch.equal(learned.boundary, torch.full((num_classes or 1,), 1.2))
    assert learned.boundary.requires_grad and not fixed.boundary.requires_grad
    raw = raw_rows()
    fixed(F.normalize(raw), LABELS).backward()
    assert raw.grad.isfinite().all() and fixed.boundary.grad is None


def test_the_same_seed_draws_the_same_triplets_whatever_else_is_drawn():
    embeddings = F.normalize(raw_rows(24))
    labels = torch.arange(24) % 3
    one, other = build(seed=5), build(seed=5)
    losses = []
    for loss_fn in (one, other):
        torch.rand(7)
        losses.append([loss_fn(embeddings, labels).item() for _ in range(5)])

    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 5
    assert losses[0] != [build(seed=6)(embeddings, labels).item() for _ in range(5)]


def test_without_a_generator_the_global_seed_decides():
    embeddings, labels = F.normalize(raw_rows(24)), torch.arange(24) % 3
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(MarginLoss()(embeddings, labels).item())
    assert losses[0] == losses[1]


def test_a_loss_with_a_generator_can_be_copied_and_its_state_kept():
    loss_fn, labels = build(seed=1), torch.arange(24) % 3
    copied, embeddings = copy.deepcopy(loss_fn), F.normalize(raw_rows(24))
    copied.load_state_dict(loss_fn.state_dict())
    assert torch.equal(loss_fn(embeddings, labels), copied(embeddings, labels))


def test_pairs_restrict_which_triplets_form():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    # Row 5 has a positive but no negative, row 7 the reverse: only row 2 forms a triplet.
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True

    loss = build(margin=2.0)(embeddings, LABELS, pairs=(positives, negatives))

    to_positive = (embeddings[2] - embeddings[4]).norm()
    to_negative = (embeddings[2] - embeddings[1]).norm()
    # Both terms are above 0: (d_ap - 1.2 + 2 + 1.2 - d_an + 2) / 2.
    torch.testing.assert_close(loss, (to_positive - to_negative + 4) / 2)


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    given = build()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(given, build()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
@pytest.mark.parametrize("num_classes", [None, 4])
def test_a_batch_without_a_triplet_gives_a_zero_with_zero_gradient(num_classes, labels):
    raw, loss_fn = raw_rows(len(labels)), build(num_classes, boundary_weight=0.5)

    loss = loss_fn(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all() and (loss_fn.boundary.grad == 0).all()


def test_identical_embeddings_cost_boundary_plus_margin_with_a_finite_gradient():
    raw = torch.tensor([[3.0, 4.0]]).repeat(4, 1).requires_grad_()

    loss = MarginLoss()(F.normalize(raw), torch.tensor([0, 0, 1, 1]))
    loss.backward()

    # At distance 0 no positive costs anything, and every negative 1.2 - 0 + 0.2.
    assert loss.item() == pytest.approx(1.4)
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_finite(dtype):
    raw = raw_rows().detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = MarginLoss(num_classes=4)(F.normalize(raw), LABELS)
    loss.backward()

    assert loss.dtype == torch.float32 and loss.isfinite()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", [0, 7], ids=["in a class", "alone in its class"])
def test_a_nan_embedding_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows()).detach()
    embeddings[row] = torch.nan
    assert build()(embeddings, LABELS).isnan()


@pytest.mark.parametrize(("nearest", "farthest"), [(0.0, 1.4), (1.4, 1.4), (0.5, 0.4)])
def test_a_range_without_distances_is_refused(nearest, farthest):
    with pytest.raises(ValueError, match="choose 0 < nearest < farthest"):
        MarginLoss(nearest=nearest, farthest=farthest)


def test_a_label_without_a_boundary_is_refused():
    rows = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="the loss has num_classes=2"):
            MarginLoss(num_classes=2)(rows, torch.tensor([0, 0, 1, bad]))
    MarginLoss()(rows, torch.tensor([0, 0, 7, -9]))  # one boundary for all asks for no classes
