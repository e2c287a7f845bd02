"""A run that cannot be finished names itself, and leaves the others alone."""

from tests.drills.breaking import (
    CHAPTER,
    ONE_LOSS,
    assert_one_sentence,
    heal,
    inject,
    row_files,
    run,
    said,
)

TWO_METHODS = ("--workers", "1", "-p", "METHODS", "[norm_softmax,contrastive]", "-p", "REFERENCES")
TWO_METHODS += ("[]", "-p", "SEEDS", "[0]")
# The batch of 16 tells training from the figure of the gradients.
NAN = """
compute, computed = NormSoftmaxLoss.forward, []

def forward(self, embeddings, *arguments, **options):
    loss = compute(self, embeddings, *arguments, **options)
    if len(embeddings) == 16:
        computed.append(1)
    return loss * float("nan") if len(computed) >= 3 else loss

NormSoftmaxLoss.forward = forward
"""
OUT_OF_MEMORY = """
compute = ContrastiveLoss.forward

def forward(self, embeddings, *arguments, **options):
    if len(embeddings) == 16:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 "
            "GiB of which 1.06 GiB is free. See documentation for Memory Management "
            "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )
    return compute(self, embeddings, *arguments, **options)

ContrastiveLoss.forward = forward
"""


def rows_of(where):
    return {path.name.partition("-")[0] for path in where.glob(f"results/{CHAPTER}/runs/*.json")}


def test_a_loss_that_becomes_nan_stops_its_own_run_alone(tmp_path):
    """NaN at step 3 of one method: the other gets its row, one sentence names method, step and
    batch; without NaN the command makes the missing row and keeps the other."""
    inject(tmp_path, "dmlkit.losses.norm_softmax", NAN)
    assert run(tmp_path, *TWO_METHODS) == 1
    assert rows_of(tmp_path) == {"contrastive"}
    assert_one_sentence(tmp_path, CHAPTER, "norm_softmax", "seed 0", "step 3", "batch")
    kept = row_files(tmp_path / "results")
    heal(tmp_path)
    assert run(tmp_path, *TWO_METHODS) == 0, said(tmp_path)
    assert rows_of(tmp_path) == {"contrastive", "norm_softmax"}
    after = row_files(tmp_path / "results")
    rows = [name for name in kept if name.endswith(".json")]
    assert rows and all(kept[name] == after[name] for name in rows)


def test_a_gpu_without_memory_is_reported_with_what_to_lower(tmp_path):
    """The error that PyTorch raises when a GPU's memory is full: one sentence names BATCH_SIZE."""
    inject(tmp_path, "dmlkit.losses.contrastive", "import torch\n" + OUT_OF_MEMORY)
    assert run(tmp_path, *ONE_LOSS) == 1
    assert_one_sentence(tmp_path, CHAPTER, "memory", "BATCH_SIZE")
    assert rows_of(tmp_path) == set()
