"""Bad input of every metric is refused in one sentence that names it and says what to do."""

from functools import partial

import numpy as np
import pytest
import torch

from dmlkit.metrics import binarise, clustering_metrics, code_metrics, kmeans, retrieval_metrics

ROWS, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) // 2
CODES = ROWS > 0
NAN = ROWS.masked_fill(torch.arange(6)[:, None] == 3, torch.nan)


def with_labels(labels):
    """Every metric that takes labels, with these."""
    return [
        partial(retrieval_metrics, ROWS, labels, ks=(1,)),
        partial(retrieval_metrics, ROWS, LABELS, ks=(1,), gallery=ROWS, gallery_labels=labels),
        partial(code_metrics, CODES, labels, ks=(1,)),
        partial(code_metrics, CODES, LABELS, ks=(1,), gallery=CODES, gallery_labels=labels),
        partial(clustering_metrics, ROWS, labels),
    ]


def with_rows(rows):
    """Every metric that takes rows of floats, with these."""
    return [
        partial(retrieval_metrics, rows, LABELS, ks=(1,)),
        partial(retrieval_metrics, ROWS, LABELS, ks=(1,), gallery=rows, gallery_labels=LABELS),
        partial(binarise, rows),
        partial(clustering_metrics, rows, LABELS),
        partial(kmeans, rows, 2),
    ]


def with_codes(codes):
    """Every metric that takes codes, with these."""
    return [
        partial(code_metrics, codes, LABELS, ks=(1,)),
        partial(code_metrics, CODES, LABELS, ks=(1,), gallery=codes, gallery_labels=LABELS),
    ]


def with_ks(ks):
    """Every metric that takes numbers of neighbours, with these."""
    return [
        partial(retrieval_metrics, ROWS, LABELS, ks=ks),
        partial(code_metrics, CODES, LABELS, ks=ks),
    ]


CASES = [
    (with_labels([0, 0, 1, 1, 2, 2]), "give an integer tensor, not list; torch.as_tensor"),
    (with_labels(list("aabbcc")), "numpy.unique.*numbers of names"),
    (with_labels(LABELS.numpy()), "not ndarray"),
    (with_labels(LABELS[:4]), r"labels \(4,\) do not correspond.*they should be \(6,\)"),
    (with_labels(LABELS[:, None]), r"\(6, 1\).*labels.squeeze\(1\), or argmax\(1\) of one-hot"),
    (with_labels(LABELS.float()), r"torch.float32; give integers, such as labels.long\(\)"),
    (with_rows(ROWS.numpy()), "give a torch tensor, not ndarray; torch.from_numpy"),
    (with_rows(ROWS[0]), r"\(4,\) should be \(N, D\)"),
    (with_rows(ROWS[:, None]), r"\(6, 1, 4\) should be \(N, D\)"),
    (with_rows(ROWS[:0]), r"\(0, 4\) is empty; give at least one row"),
    (with_rows(ROWS[:, :0]), "is empty"),
    (with_rows(NAN), "row 3 of .* holds NaN or infinity"),
    (with_rows(NAN.nan_to_num(torch.inf)), "row 3 of .* holds NaN or infinity"),
    (with_codes(CODES.numpy()), "give a torch tensor, not ndarray"),
    (with_codes(CODES.byte()), r"uint8; give bool, a column per bit"),
    (with_codes(ROWS), r"float32; give bool.*binarise\(embeddings\)"),
    (with_codes(CODES[:0]), "is empty; give at least one row"),
    (with_ks(1), "ks = 1 should be a tuple of integers"),
    (with_ks((1.5,)), "should be a tuple of integers"),
    (with_ks(torch.tensor([1])), "should be a tuple of integers"),
    (with_ks(()), "give at least one K, from 1"),
    (with_ks((0, 1)), r"not defined for K in \(0, 1\)"),
    (with_ks((1, 6)), "Recall@6 needs at least 6 items to retrieve, there are 5; leave it out"),
]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(c, said, id=f"{said[:25]}-{i}")
        for calls, said in CASES
        for i, c in enumerate(calls)
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=said) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("alone", ["gallery", "gallery_labels"])
def test_a_gallery_and_its_labels_are_given_together(alone):
    given = {"gallery": ROWS, "gallery_labels": LABELS}[alone]
    for metric, rows in ((retrieval_metrics, ROWS), (code_metrics, CODES)):
        with pytest.raises(ValueError, match="give gallery and gallery_labels together"):
            metric(rows, LABELS, **{alone: given})


def test_a_set_in_which_nothing_can_be_found_says_why():
    for metric, rows in ((retrieval_metrics, ROWS), (code_metrics, CODES)):
        with pytest.raises(ValueError, match="each class has a single image"):
            metric(rows, torch.arange(6), ks=(1,))
        with pytest.raises(ValueError, match="no class of labels occurs in gallery_labels"):
            metric(rows, LABELS, ks=(1,), gallery=rows, gallery_labels=LABELS + 9)


def test_complex_embeddings_are_refused():
    with pytest.raises(ValueError, match="complex64; give real numbers"):
        retrieval_metrics(ROWS.to(torch.complex64), LABELS, ks=(1,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_real_types_are_taken_as_float32(dtype):
    rows = (4 * ROWS).to(dtype)
    found = retrieval_metrics(rows, LABELS, ks=(1, 2))
    assert found.means() == retrieval_metrics(rows.float(), LABELS, ks=(1, 2)).means()


@pytest.mark.parametrize("memory", [0, -1, float("nan")])
def test_memory_is_above_zero(memory):
    for metric, rows in ((retrieval_metrics, ROWS), (code_metrics, CODES)):
        with pytest.raises(ValueError, match="memory_mib = .* should be above 0"):
            metric(rows, LABELS, ks=(1,), memory_mib=memory)


def test_a_column_of_labels_that_is_not_contiguous_is_taken():
    table = torch.stack([LABELS, LABELS + 7], dim=1)
    for metric, rows in ((retrieval_metrics, ROWS), (code_metrics, CODES)):
        assert metric(rows, table[:, 0], ks=(1,)).labels.tolist() == LABELS.tolist()
    assert np.isfinite(clustering_metrics(ROWS, table[:, 1])["ami"])
