"""Species of butterflies: each one of its own, told apart by what the share says, and whole."""

import numpy as np
import pytest

from dmlkit.datasets.drawings.aviary_species import ANIMAL, TONES
from dmlkit.datasets.drawings.butterfly_species import (
    PALETTE,
    REGIONS,
    SHAPES,
    SPRITE,
    draw_species,
    species_genes,
)

BOUNDS = REGIONS | SHAPES

GENES = "dmlkit.datasets.drawings.butterfly_species.species_genes"


@pytest.mark.parametrize("share_percent", [0, 50, 100])
def test_no_two_species_of_two_replicates_are_the_same(share_percent):
    keys = [(seed, species) for seed in (0, 1) for species in range(150)]
    genes = {tuple(species_genes(*key, share_percent).values()) for key in keys}
    assert len(genes) == len(keys)


def test_colour_and_shape_genes_have_different_names():
    assert not set(REGIONS) & set(SHAPES)


@pytest.mark.parametrize(
    ("share_percent", "shared", "differing"),
    [(100, REGIONS, SHAPES), (0, SHAPES, REGIONS)],
    ids=["pattern only", "colour only"],
)
def test_at_the_extremes_species_share_all_colours_or_all_shapes(share_percent, shared, differing):
    genes = [species_genes(0, species, share_percent) for species in range(40)]
    assert all(len({g[name] for g in genes}) == 1 for name in shared)
    assert all(len({g[name] for g in genes}) > 1 for name in differing)


@pytest.mark.parametrize("share_percent", [0, 50, 100])
def test_genes_stay_within_their_bounds(share_percent):
    for species in range(20):
        genes = species_genes(0, species, share_percent)
        assert genes.keys() == BOUNDS.keys()
        assert all(low <= genes[name] <= high for name, (low, high) in BOUNDS.items())


def test_species_of_a_genus_look_alike():
    genes = [np.array(list(species_genes(0, species, 50).values())) for species in range(60)]
    alike = np.array([[np.mean(one == other) for other in genes] for one in genes])
    np.fill_diagonal(alike, 0)
    assert alike.max(axis=1).mean() > 1.5 * alike.mean()
    assert alike.max() < 1


def test_a_sprite_holds_a_whole_butterfly_of_two_equal_halves():
    for species in range(60):
        sprite, colours = draw_species(0, species, 50)
        assert sprite.shape == SPRITE and sprite.dtype == np.uint8
        # The pose repeats the border outwards, so wings that touched it would be smeared.
        assert not any(edge.any() for edge in (sprite[0], sprite[-1], sprite[:, 0], sprite[:, -1]))
        assert np.array_equal(sprite, sprite[:, ::-1])
        painted = set(np.unique((sprite[sprite > 0] - ANIMAL) // len(TONES)))
        names = [*REGIONS, "eye", "glint"]
        assert {names.index(name) for name in ("fore", "hind", "body", "eye")} <= painted
        assert max(painted) < len(colours) == len(names)


@pytest.mark.parametrize("extreme", [0, 1], ids=["lowest", "highest"])
def test_wings_of_extreme_genes_stay_within_the_sprite(extreme, monkeypatch):
    genes = {name: bounds[extreme] for name, bounds in BOUNDS.items()}
    for apex in SHAPES["fore_apex"]:
        for cell in SHAPES["tail_cell"]:
            chosen = genes | {"fore_apex": apex, "tail_cell": cell}
            monkeypatch.setattr(
                GENES,
                lambda *_, genes=chosen: genes,
            )
            sprite, _ = draw_species.__wrapped__(0, 0, 50)
            assert not sprite[[0, -1]].any() and not sprite[:, [0, -1]].any()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("tail_length", 0, 120),
        ("fore_border", 0, 44),
        ("hind_eyes", 0, 4),
        ("veins_kind", 0, 2),
        ("hind_scallops", 0, 22),
    ],
)
def test_a_gene_shows(name, low, high, monkeypatch):
    drawn = []
    for value in (low, high):
        genes = species_genes(0, 3, 50) | {name: value}
        monkeypatch.setattr(
            GENES,
            lambda *_, genes=genes: genes,
        )
        drawn.append(draw_species.__wrapped__(0, 3, 50)[0])
    assert np.count_nonzero(drawn[0] != drawn[1]) > 100


def test_colours_of_a_species_are_the_palette_entries_of_its_genes():
    genes = species_genes(0, 3, 50)
    _, colours = draw_species(0, 3, 50)
    for region, colour in zip(REGIONS, colours[: len(REGIONS)], strict=True):
        assert np.array_equal(colour, PALETTE[genes[region]])
