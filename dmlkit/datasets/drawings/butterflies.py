"""Butterflies: the second family of drawn images, unlike the aviary in all but how it is drawn.

A class is a species (outline, scallops and tails of the wings, bands, borders, veins, spots,
eyespots, colours, body); an image is one butterfly of it from above, in any direction, its wings
more or less folded, in some place and light. Matching the pixels of two images says little.

The difficulty was set by the size, fold, place and leaves of the butterflies and the length of
their wings, on seeds 0-2 and with nothing but what the aviary was tuned with: the references, and a
classifier trained on 50 other species. (At first they were smaller: classifier .26 at 0.5.) It was
frozen before any metric-learning loss was trained on them. Recall@1 on 50 unseen species x 24
images at 48 px, mean of the three seeds (chance .02):

| pattern_share                           |   0 | 0.5 |   1 |
|-----------------------------------------|-----|-----|-----|
| ``colour_histogram``                    | .19 | .16 | .06 |
| ``raw_pixels``                          | .12 | .12 | .05 |
| untrained ConvNet                       | .07 | .05 | .03 |
| classifier, 150 steps of 64 images      | .50 | .41 | .26 |
| classifier, 750 steps                   | .74 | .67 | .73 |

On seeds 3-5, which nobody tuned on, measured once:

| pattern_share                           |   0 | 0.5 |   1 |
|-----------------------------------------|-----|-----|-----|
| ``colour_histogram``                    | .13 | .17 | .05 |
| ``raw_pixels``                          | .07 | .12 | .06 |
| untrained ConvNet                       | .04 | .05 | .03 |
| classifier, 150 steps of 64 images      | .47 | .48 | .36 |
"""

from collections.abc import Sequence

import numpy as np

from dmlkit.datasets.drawings.aviary import DrawnSet, Family, draw_set
from dmlkit.datasets.drawings.butterfly_species import draw_species

SCENERY = np.array(  # grass and leaves, petals, earth and stone, a little sky
    [(96, 136, 62), (60, 92, 50), (150, 172, 88), (40, 62, 44), (112, 140, 112), (186, 196, 140)]
    + [(206, 118, 156), (150, 104, 170), (226, 196, 86), (222, 136, 70), (236, 228, 222)]
    + [(120, 94, 68), (176, 152, 122), (96, 90, 88), (190, 186, 178), (148, 188, 212)]
)
BACKGROUNDS = {  # as those of the aviary
    "meadow": (120, 48, (7, 1), 80, 0),
    "petals": (90, 150, (5, 5), 110, 0),
    "leaf": (30, 64, (4, 4), 90, 1),
    "stones": (160, 36, (3, 6), 20, 0),
    "earth": (140, 110, (2, 7), 50, 0),
}
FACTORS = {  # the aviary's, which a butterfly seen from above gives other meanings and ranges
    "rotation": (-180, 179),  # degrees, 0 flies upwards, positive turns left
    "mirrored": (0, 1),  # 1: the whole picture is flipped
    "scale": (92, 140),  # percent
    "foreshortening": (60, 100),  # percent of the span left by folding the wings
    "bend": (-60, 60),  # how far the wings are swept, positive ahead
    "x": (-32, 32),  # canvas pixels, positive is right
    "y": (-32, 32),  # canvas pixels, positive is down
    "brightness": (85, 115),  # percent
    "warmth": (-10, 10),  # percent more red and less blue
    "haze": (0, 14),  # percent of the colour lost to grey
    "background": (0, len(BACKGROUNDS) - 1),  # which of ``BACKGROUNDS``
    "leaves": (0, 5),  # how many lie in the picture
    "blur": (0, 2),  # passes of a 1-2-1 filter
    "noise": (1, 5),  # grey levels, about the standard deviation of the sensor noise
}
BUTTERFLIES = Family(
    streams=("butterflies",),
    draw_species=draw_species,
    factors=FACTORS,
    uniform=("rotation", "mirrored", "background"),
    backgrounds=BACKGROUNDS,
    scenery=SCENERY,
    perch_height=(-80, 80),
)


def draw_butterflies(
    num_classes: int,
    images_per_class: int | Sequence[int],
    seed: int,
    *,
    image_size: int = 48,
    pattern_share: float = 0.5,
    first_species: int = 0,
    first_image: int = 0,
) -> DrawnSet:
    """Draw images of ``num_classes`` species of butterflies; arguments as of ``draw_aviary``."""
    first = (first_species, first_image)
    return draw_set(
        BUTTERFLIES, num_classes, images_per_class, seed, image_size, pattern_share, first
    )
