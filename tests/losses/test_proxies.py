"""What proxy losses refuse, and what they must let pass."""

import pytest
import torch

from dmlkit.losses.norm_softmax import NormSoftmaxLoss
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import all_pairs

EMBEDDINGS = torch.eye(4)
LABELS = torch.tensor([0, 3, 2, 0])


def check(labels, *, pairs=None, embeddings=EMBEDDINGS):
    loss = NormSoftmaxLoss(4, 4)
    check_proxy_inputs(loss, embeddings, labels, pairs, num_classes=4)


def test_labels_of_every_class_pass():
    check(LABELS)
    check(torch.arange(4))


def test_an_empty_batch_passes():
    check(LABELS[:0], embeddings=EMBEDDINGS[:0])


def test_pairs_are_refused_in_the_name_of_the_loss():
    with pytest.raises(ValueError, match="^NormSoftmaxLoss compares with proxies, not pairs"):
        check(LABELS, pairs=all_pairs(LABELS))


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS[:, None]], ids=["too few", "a column"])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ValueError, match="give one class id for each of the 4 embeddings"):
        check(labels)


@pytest.mark.parametrize(
    ("bad", "span"),
    [(4, "0..4"), (-1, "-1..3"), (-100, "-100..3")],
    ids=["too high", "negative", "ignored by cross-entropy"],
)
def test_a_label_without_a_proxy_is_refused(bad, span):
    labels = LABELS.clone()
    labels[3] = bad
    with pytest.raises(ValueError, match=f"labels span {span} but the loss has num_classes=4"):
        check(labels)
