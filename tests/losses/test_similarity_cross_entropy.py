"""The two cross-entropies against their formulas, by hand and pair by pair, and their limits."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses import GlobalCrossEntropyLoss, LocalCrossEntropyLoss, hyperparameters
from dmlkit.losses.similarity_cross_entropy import __doc__ as module_documentation

# Rows of directions (1, 0), (0.6, 0.8) and (0, 1): cosines 0.6, 0.8 and 0.
ROWS = torch.tensor([[3.0, 0.0], [0.6, 0.8], [0.0, 0.5]])
LABELS = torch.tensor([1, 1, 0])


def cost(logit):
    """Return -log sigmoid(logit)."""
    return math.log(1 + math.exp(-logit))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def random_batches(count=4, rows=7, dim=3, clusters=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        responses = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        yield responses, torch.randint(clusters, (rows,), generator=generator)


def both_losses():
    return LocalCrossEntropyLoss(), GlobalCrossEntropyLoss(4, 3)


def test_both_say_that_they_are_an_interpretation():
    assert "OUR INTERPRETATION" in module_documentation
    for loss_fn in both_losses():
        assert "our interpretation" in type(loss_fn).__doc__


# --- Within the batch


def test_three_images_by_hand():
    # Logits 0.6 and 0.8 - 0.5 of 0.6, 0.8 and 0, over 0.1: 1 within, and 3 and -5 across.
    loss = LocalCrossEntropyLoss()(ROWS, LABELS)
    # log(1 + e^-1) = 0.313262, log(1 + e^3) = 3.048587, log(1 + e^-5) = 0.006715
    assert loss.item() == pytest.approx((0.313262 + (3.048587 + 0.006715) / 2) / 2, abs=1e-6)


@pytest.mark.parametrize("settings", [(0.1, 0.5), (0.7, -0.2)], ids=["defaults", "others"])
def test_within_the_batch_it_matches_the_formula_pair_by_pair(settings):
    temperature, offset = settings
    for responses, labels in random_batches():
        costs = {True: [], False: []}
        for one, other in itertools.combinations(range(len(labels)), 2):
            cosine = F.cosine_similarity(responses[one], responses[other], dim=0).item()
            logit, same = (cosine - offset) / temperature, bool(labels[one] == labels[other])
            costs[same].append(cost(logit if same else -logit))
        loss_fn = LocalCrossEntropyLoss(temperature=temperature, offset=offset)
        expected = (mean(costs[True]) + mean(costs[False])) / 2
        assert loss_fn(responses, labels).item() == pytest.approx(expected)


def test_a_kind_without_a_pair_counts_as_zero():
    loss_fn = LocalCrossEntropyLoss()
    within = (cost(1) + cost(3) + cost(-5)) / 3
    across = (cost(-1) + cost(-3) + cost(5)) / 3
    assert loss_fn(ROWS, torch.tensor([4, 4, 4])).item() == pytest.approx(within / 2)
    assert loss_fn(ROWS, torch.tensor([4, 5, 6])).item() == pytest.approx(across / 2)
    row = ROWS[:1].clone().requires_grad_()
    nothing = loss_fn(row, LABELS[:1])
    nothing.backward()
    assert nothing.item() == 0
    assert (row.grad == 0).all()


def test_within_the_batch_gradients_are_those_of_the_value():
    responses, labels = next(random_batches())
    loss_fn = LocalCrossEntropyLoss()
    assert torch.autograd.gradcheck(lambda r: loss_fn(r, labels), responses.requires_grad_())


# --- With what was seen of all clusters


def test_three_batches_by_hand():
    loss_fn = GlobalCrossEntropyLoss(3, 2, momentum=0.75)
    # Nothing was seen. Then cluster 1 is at (1.6, 0.8) / 2 made unit, (2, 1) / sqrt(5), and
    # cluster 0 at (0, 1).
    assert loss_fn(ROWS, LABELS).item() == 0
    seen = torch.tensor([[0.0, 1.0], [2 / 5**0.5, 1 / 5**0.5], [0.0, 0.0]])
    torch.testing.assert_close(loss_fn.centroids, seen)
    assert loss_fn.is_seen.tolist() == [True, True, False]

    # (1, 0) of cluster 0 and (0, -1) of cluster 2: cosines 0 and 2 / sqrt(5) with clusters 0 and
    # 1, and -1 and -1 / sqrt(5). Only the first is of its own cluster, which 2 was not seen yet.
    responses = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    logits = [(cosine - 0.5) / 0.1 for cosine in (0, 2 / 5**0.5, -1, -1 / 5**0.5)]
    own, *others = logits
    expected = (cost(own) + sum(cost(-logit) for logit in others) / 3) / 2
    assert loss_fn(responses, torch.tensor([0, 2])).item() == pytest.approx(expected)
    # 0.75 (0, 1) + 0.25 (1, 0) = (1, 3) / 4, made unit; cluster 1 stays, cluster 2 starts.
    seen = torch.tensor([[1 / 10**0.5, 3 / 10**0.5], [2 / 5**0.5, 1 / 5**0.5], [0.0, -1.0]])
    torch.testing.assert_close(loss_fn.centroids, seen)
    assert loss_fn.is_seen.all()

    # (0, 1) of cluster 2: cosines 3 / sqrt(10), 1 / sqrt(5) and -1.
    first, second, own = ((c - 0.5) / 0.1 for c in (3 / 10**0.5, 1 / 5**0.5, -1))
    expected = (cost(own) + (cost(-first) + cost(-second)) / 2) / 2
    loss = loss_fn(torch.tensor([[0.0, 1.0]]), torch.tensor([2]))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [(0.99, 0.1, 0.5), (0.6, 0.7, -0.2), (0.0, 0.1, 0.5)],
    ids=["defaults", "others", "no momentum"],
)
def test_with_clusters_it_matches_the_formula_pair_by_pair(settings):
    momentum, temperature, offset = settings
    loss_fn = GlobalCrossEntropyLoss(
        4, 3, momentum=momentum, temperature=temperature, offset=offset
    )
    centroids = {}
    for responses, labels in random_batches(count=6, rows=4):
        costs = {True: [], False: []}
        for response, label in zip(responses, labels.tolist(), strict=True):
            for number, centroid in centroids.items():
                cosine = F.cosine_similarity(response, centroid, dim=0).item()
                logit = (cosine - offset) / temperature
                costs[number == label].append(cost(logit if number == label else -logit))
        expected = (mean(costs[True]) + mean(costs[False])) / 2
        # What is kept has single precision.
        assert loss_fn(responses, labels).item() == pytest.approx(expected, rel=1e-5)
        for number in set(labels.tolist()):
            mine = [row / row.norm() for row in responses[labels == number]]
            average = sum(mine) / len(mine)
            if number in centroids:
                average = momentum * centroids[number] + (1 - momentum) * average
            centroids[number] = average / average.norm()
    assert len(centroids) == 4


def test_centroids_are_of_unit_length_and_have_no_gradient():
    loss_fn = GlobalCrossEntropyLoss(4, 3)
    losses = []
    for responses, labels in random_batches():
        losses.append(loss_fn(responses.float().requires_grad_(), labels))
        assert not loss_fn.centroids.requires_grad
        lengths = loss_fn.centroids[loss_fn.is_seen].norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(len(lengths)))
    for loss in losses:  # a centroid that moved in place would refuse here
        loss.backward()


def test_with_clusters_gradients_are_those_of_the_value():
    loss_fn = GlobalCrossEntropyLoss(4, 3).double()
    *seen, (responses, labels) = random_batches()
    for batch in seen:
        loss_fn(*batch)
    loss_fn.eval()
    assert torch.autograd.gradcheck(lambda r: loss_fn(r, labels), responses.requires_grad_())


def test_evaluation_moves_no_centroid():
    loss_fn = GlobalCrossEntropyLoss(3, 2).eval()
    loss_fn(ROWS, LABELS)
    assert not loss_fn.is_seen.any() and not loss_fn.centroids.any()
    loss_fn.train()(ROWS, LABELS)
    kept = loss_fn.centroids.clone()
    in_training = GlobalCrossEntropyLoss(3, 2)
    in_training.load_state_dict(loss_fn.state_dict())
    loss = loss_fn.eval()(ROWS.flip(0), LABELS)
    assert torch.equal(loss_fn.centroids, kept)
    assert torch.equal(loss, in_training(ROWS.flip(0), LABELS))
    assert not torch.equal(in_training.centroids, kept)


def test_its_state_is_saved_and_taken_up_again():
    loss_fn, resumed = GlobalCrossEntropyLoss(4, 3), GlobalCrossEntropyLoss(4, 3)
    *seen, last = random_batches()
    for batch in seen:
        loss_fn(*batch)
    assert loss_fn.state_dict().keys() == {"centroids", "is_seen"}
    resumed.load_state_dict(loss_fn.state_dict())
    assert torch.equal(resumed(*last), loss_fn(*last))
    assert torch.equal(resumed.centroids, loss_fn.centroids)


# --- Both


def test_defaults_are_the_stated_ones():
    local, by_cluster = both_losses()
    assert hyperparameters(local) == {"temperature": 0.1, "offset": 0.5}
    assert hyperparameters(by_cluster) == {"momentum": 0.99, "temperature": 0.1, "offset": 0.5}


def test_descent_draws_the_similarities_of_clusters_apart():
    for loss_fn in both_losses():
        raw, labels = next(random_batches())
        raw.requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=0.05)
        before = contrast(raw, labels)
        for _ in range(60):
            optimizer.zero_grad()
            loss_fn(raw, labels).backward()
            optimizer.step()
        assert contrast(raw, labels) > before + 0.3


def contrast(raw, labels):
    rows = F.normalize(raw.detach())
    same = labels[:, None] == labels
    return ((rows @ rows.T)[same].mean() - (rows @ rows.T)[~same].mean()).item()


def test_a_far_outlier_costs_much_but_not_infinity():
    # Logits of +-150 within (0.01 of temperature): the cost is the logit itself.
    loss_fn = LocalCrossEntropyLoss(temperature=0.01)
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    loss = loss_fn(rows, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(150 / 2)
    assert rows.grad.isfinite().all()


def test_the_length_of_a_response_does_not_matter():
    for loss_fn in both_losses():
        responses, labels = next(random_batches())
        loss_fn(responses, labels)
        loss = loss_fn.eval()(responses, labels)
        stretched = responses * torch.arange(1, 8)[:, None]
        torch.testing.assert_close(loss_fn(stretched, labels), loss)
        assert loss > 0


def test_a_nan_shows():
    for loss_fn in both_losses():
        responses, labels = next(random_batches())
        loss_fn(responses, labels)
        responses[2, 1] = torch.nan
        assert loss_fn(responses, labels).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_coarsens_neither_the_loss_nor_the_centroids(dtype):
    responses, labels = next(random_batches())
    responses = responses.to(dtype)
    for inside, outside in zip(both_losses(), both_losses(), strict=True):
        for _ in range(2):
            with torch.autocast("cpu", dtype=dtype):
                loss = inside(responses, labels)
            assert loss.dtype == torch.float32
            assert torch.equal(loss, outside(responses.float(), labels))
        for name, value in inside.state_dict().items():
            assert torch.equal(value, outside.state_dict()[name])


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1))], ids=str)
def test_other_shapes_are_refused(shapes):
    responses, labels = torch.ones(shapes[0]), torch.zeros(shapes[1], dtype=torch.long)
    for loss_fn in both_losses():
        with pytest.raises(ValueError, match=r"give \(B, K\) and one cluster id per row"):
            loss_fn(responses, labels)


def test_clusters_and_responses_that_the_loss_has_no_centroid_for_are_refused():
    loss_fn = GlobalCrossEntropyLoss(4, 3)
    for labels in ([0, 4], [-1, 2]):
        with pytest.raises(ValueError, match=rf"{min(labels)}..{max(labels)} .* num_clusters=4;"):
            loss_fn(torch.ones(2, 3), torch.tensor(labels))
    with pytest.raises(ValueError, match="rows have 2 responses and the loss num_responses=3"):
        loss_fn(torch.ones(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.inf}, "temperature=inf must be above 0 and finite"),
        ({"offset": 1.5}, "offset=1.5 is no cosine"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        LocalCrossEntropyLoss(**setting)
    with pytest.raises(ValueError, match=message):
        GlobalCrossEntropyLoss(4, 3, **setting)


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum} must be from 0 to below 1"):
        GlobalCrossEntropyLoss(4, 3, momentum=momentum)
