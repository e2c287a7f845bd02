"""README.md shows the committed results, letter for letter."""

import re

import pytest
from PIL import Image

from dmlkit import readme
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT


def test_the_readme_equals_what_the_committed_results_give():
    assert (PROJECT_ROOT / "README.md").read_text() == readme.readme_text()


def test_a_block_is_replaced_by_the_file_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "PROJECT_ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "main.md").write_text("| new |\n")
    page = "Before\n<!-- results/main.md -->\n| old |\n<!-- end -->\nAfter\n"
    (tmp_path / "README.md").write_text(page)
    readme.update_readme()
    assert (tmp_path / "README.md").read_text() == page.replace("old", "new")


def test_a_missing_results_file_is_an_error_and_not_an_empty_table(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "PROJECT_ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- results/none.md -->\n<!-- end -->\n")
    with pytest.raises(FileNotFoundError, match=r"none\.md"):
        readme.update_readme()


def test_the_examples_in_the_readme_run(tmp_path, monkeypatch):
    text = (PROJECT_ROOT / "README.md").read_text()
    of_metrics, of_losses, of_images = re.findall(
        r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    found: dict[str, object] = {}
    exec(of_metrics, found)  # noqa: S102
    assert found["one"][0]["classes"][0] == "class 0"
    trained: dict[str, object] = {}
    exec(of_losses, trained)  # noqa: S102
    moved = trained["optimizer"].state
    assert trained["loss_fn"].proxies in moved and trained["head"].linear.weight in moved

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for path in ("photographs/a.jpg", "photographs/b.jpg", "query.jpg"):
        Image.effect_noise((60, 50), 90).convert("RGB").save(path)
    trunk = make_trunk("small_convnet")
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, 8))
    *rest, search = of_images.strip().splitlines()
    searched = {"model": model}
    exec("\n".join([*rest, f"found = {search}"]), searched)  # noqa: S102
    assert set(searched["found"]["path"]) == {"a.jpg", "b.jpg"}
    assert searched["found"]["rank"].tolist() == [1, 2]
