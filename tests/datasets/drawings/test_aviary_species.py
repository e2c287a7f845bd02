"""Species: each one of its own, told apart by what the share says, whole on its grid."""

import numpy as np
import pytest

from dmlkit.datasets.drawings.aviary_species import (
    ANIMAL,
    PALETTE,
    REGIONS,
    SHAPES,
    SPRITE,
    TONES,
    Dice,
    draw_species,
    species_genes,
)


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
    bounds = dict.fromkeys(REGIONS, (0, len(PALETTE) - 1)) | SHAPES
    for species in range(20):
        genes = species_genes(0, species, share_percent)
        assert genes.keys() == bounds.keys()
        assert all(low <= genes[name] <= high for name, (low, high) in bounds.items())


def test_a_sprite_holds_a_whole_bird_and_its_eye():
    for species in range(20):
        sprite, colours = draw_species(0, species, 50)
        assert sprite.shape == SPRITE and sprite.dtype == np.uint8
        # The pose repeats the border outwards, so a bird that touched it would be smeared.
        assert not any(edge.any() for edge in (sprite[0], sprite[-1], sprite[:, 0], sprite[:, -1]))
        painted = set(np.unique((sprite[sprite > 0] - ANIMAL) // len(TONES)))
        assert {REGIONS.index("back"), REGIONS.index("wing"), len(REGIONS)} <= painted
        assert max(painted) < len(colours) == len(REGIONS) + 2


def test_colours_of_a_species_are_the_palette_entries_of_its_genes():
    genes = species_genes(0, 3, 50)
    _, colours = draw_species(0, 3, 50)
    for region, colour in zip(REGIONS, colours[: len(REGIONS)], strict=True):
        assert np.array_equal(colour, PALETTE[genes[region]])


def test_dice_depend_on_their_key_alone_and_keep_their_bounds():
    one, same, other = Dice("a", 1), Dice("a", np.int64(1)), Dice("a", 2)
    drawn = one.draw(-3, 3, 500)
    assert np.array_equal(drawn, same.draw(-3, 3, 500))
    assert not np.array_equal(drawn, other.draw(-3, 3, 500))
    assert set(drawn) == set(range(-3, 4))
