"""The species of butterflies: what defines each of them, and its picture in index colours.

A wing is drawn in its own coordinates, as real wings grow: veins run from its base to its margin
and part it into cells, bands cross the cells at some share of the way, and each cell may hold a
spot or an eyespot. Only the right half is drawn; the left one mirrors it. Directions need no sine:
0 points ahead, 1024 outwards and 2048 back, with x / (x + |y|) growing and then falling between.
"""

from functools import lru_cache
from math import isqrt

import numpy as np

from dmlkit.datasets.drawings.aviary_species import EYE, Sprite, inherit

SPRITE = (200, 232)  # rows and columns of a sprite; the butterfly flies upwards
PALETTE = np.array(  # from dark to light: blacks and browns, strong colours, pale ones
    [(24, 22, 26), (52, 38, 36), (40, 44, 66), (88, 54, 36), (70, 72, 78), (124, 60, 34)]
    + [(176, 44, 38), (214, 106, 34), (232, 164, 44), (46, 88, 158), (92, 140, 196), (116, 76, 138)]
    + [(78, 122, 74), (172, 134, 92), (158, 168, 160), (216, 150, 150), (234, 214, 96)]
    + [(184, 212, 206), (230, 216, 184), (242, 240, 232)]
)
DARK, ANY, LIGHT = (0, 5), (0, len(PALETTE) - 1), (6, len(PALETTE) - 1)
REGIONS = {  # which part of the palette each takes its colour from
    "fore": ANY, "hind": ANY, "base": ANY, "fore_band": ANY, "hind_band": ANY, "tip": ANY,
    "border": DARK, "spots": LIGHT, "eye_ring": LIGHT, "eye_centre": DARK, "veins": DARK,
    "mark": ANY, "body": DARK, "belt": LIGHT,
}  # fmt: skip
SHAPES = {  # lowest and highest value of each gene: quarter pixels, directions, shares or kinds
    "fore_length": (244, 312), "fore_apex": (380, 640), "fore_corner": (50, 80),
    "fore_hollow": (-12, 10), "fore_scallops": (0, 12), "hind_length": (184, 248),
    "hind_shoulder": (70, 100), "hind_heel": (64, 104), "hind_scallops": (0, 22),
    "tail_length": (-90, 120), "tail_cell": (2, 4), "tail_width": (44, 80),
    "fore_band_kind": (0, 4), "fore_band_place": (100, 190), "fore_band_width": (10, 30),
    "hind_band_kind": (0, 4), "hind_band_place": (90, 180), "hind_band_width": (12, 40),
    "fore_border": (-16, 44), "hind_border": (-16, 44), "border_kind": (0, 2),
    "fore_spots": (0, 3), "hind_spots": (0, 3), "spots_size": (9, 16),
    "fore_eyes": (0, 2), "hind_eyes": (0, 4), "eye_size": (16, 30), "eye_place": (150, 200),
    "tip_kind": (0, 2), "base_reach": (-60, 130), "veins_kind": (0, 2), "mark_kind": (0, 2),
    "body_width": (5, 8), "belts_kind": (0, 2),
}  # fmt: skip
_SQUARES = np.arange(4 * SPRITE[1]) ** 2


@lru_cache(maxsize=256)
def draw_species(seed: int, species: int, share_percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sprite of a species and the colours (regions, 3) of its wings, body and eye."""
    genes = species_genes(seed, species, share_percent)
    half = _RightHalf(genes).indices
    colours = np.concatenate([PALETTE[[genes[region] for region in REGIONS]], EYE])
    return np.concatenate([half[:, ::-1], half], axis=1), colours


def species_genes(seed: int, species: int, share_percent: int = 50) -> dict[str, int]:
    """Return what defines a species: a palette entry per region, then shape and pattern."""
    return inherit(REGIONS, SHAPES, ("butterflies", seed), species, share_percent)


class _Wing:
    """The right wing that grows from ``base``, in its own coordinates.

    Args:
        sprite: gives the pixels.
        base: where the wing meets the body.
        corners: direction and reach in quarter pixels of points of the outline, by direction.
        cells: number of cells between the first and the last corner.
        scallops: how far the margin draws back at each vein, quarter pixels.
    """

    def __init__(
        self,
        sprite: Sprite,
        base: tuple[int, int],
        corners: list[tuple[int, int]],
        cells: int,
        scallops: int,
    ) -> None:
        self.base, self.first, self.last, self.cells = base, corners[0][0], corners[-1][0], cells
        every = np.arange(2049)  # directions
        reach = np.zeros_like(every)
        for (start, near), (end, far) in zip(corners, corners[1:], strict=False):
            step = np.arange(end - start + 1)
            reach[start : end + 1] = near + (far - near) * step // (end - start)
        total = np.pad(reach, (49, 48)).cumsum()
        reach = (total[97:] - total[:-97]) // 97  # rounds the corners
        self.reach = reach - scallops * abs(self.phase(every)) // 128  # base to margin

        x, y = (sprite.x - base[0]).clip(0), sprite.y - base[1]
        ahead = 1024 * x // np.maximum(x + abs(y), 1)
        self.direction = np.where(y < 0, ahead, 2048 - ahead)
        self.radius = np.searchsorted(_SQUARES, 16 * (x * x + y * y))  # quarter pixels
        self.margin = self.reach[self.direction] - self.radius  # distance to the margin
        self.inside = self.margin > 0
        self.share = 256 * self.radius // self.reach[self.direction].clip(1)  # 256 at the margin
        self.across = self.phase(self.direction)  # 0 in the middle of a cell, 128 at its veins

    def phase(self, direction: np.ndarray) -> np.ndarray:
        """Return the place within a cell, -128 to 127 from vein to vein."""
        return (direction - self.first) * self.cells * 256 // (self.last - self.first) % 256 - 128

    def middle(self, cell: int, share: int) -> tuple[int, int]:
        """Return the point in the middle of a cell, ``share`` / 256 of the way to the margin."""
        direction = self.first + (2 * cell + 1) * (self.last - self.first) // (2 * self.cells)
        out = min(direction, 2048 - direction)
        back = 1024 - out if direction > 1024 else out - 1024
        length, unit = int(self.reach[direction]) * share // 1024, isqrt(out * out + back * back)
        return self.base[0] + length * out // unit, self.base[1] + length * back // unit


class _RightHalf(Sprite):
    """The right half of a butterfly, painted from hindwing to eye."""

    def __init__(self, genes: dict[str, int]) -> None:
        super().__init__(tuple(REGIONS), (SPRITE[0], SPRITE[1] // 2), (SPRITE[0] // 2, 0))
        hind, fore = self._hindwing(genes), self._forewing(genes)
        self.tone = np.where(fore.margin > -14, 3, 1 + (hind.share > 150)).astype(np.uint8)
        self._pattern(hind, "hind", genes)
        self.tone = (2 - (fore.share > 60) - (fore.share > 130)).astype(np.uint8)
        self._pattern(fore, "fore", genes)
        self._body(genes)

    def _forewing(self, genes: dict[str, int]) -> _Wing:
        length, apex = genes["fore_length"], genes["fore_apex"]
        corner = length * genes["fore_corner"] // 100
        corners = [
            (apex - 150, length // 3),
            (apex - 40, length * 96 // 100),
            (apex + 30, length),
            ((apex + 1180) // 2, (length + corner) * (100 - genes["fore_hollow"]) // 200),
            (1150, corner),
            (1300, corner // 2),
        ]
        return _Wing(self, (2, -16), corners, 6, genes["fore_scallops"])

    def _hindwing(self, genes: dict[str, int]) -> _Wing:
        length = genes["hind_length"]
        corners = [
            (700, length * 3 // 5),
            (950, length * genes["hind_shoulder"] // 100),
            (1300, length),
            (1600, length * genes["hind_heel"] // 100),
            (1850, length * 3 // 4),
            (1990, length // 3),
        ]
        wing = _Wing(self, (2, -4), corners, 6, genes["hind_scallops"])
        if genes["tail_length"] > 0:
            cell, width = genes["tail_cell"], genes["tail_width"]
            vein = wing.first + (cell + 1) * (wing.last - wing.first) // wing.cells
            taper = (3 * width - 3 * abs(wing.direction - vein)).clip(0, 2 * width)  # a blunt end
            wing.margin += genes["tail_length"] * taper // (2 * width)
            wing.inside = wing.margin > 0
        return wing

    def _pattern(self, wing: _Wing, name: str, genes: dict[str, int]) -> None:
        inside, share, across = wing.inside, wing.share, abs(wing.across)
        nowhere = wing.radius < 0
        self.paint(inside, name)
        self.paint(inside & (wing.radius < genes["base_reach"]), "base")
        off, width = share - genes[f"{name}_band_place"], genes[f"{name}_band_width"]
        bands = (
            nowhere,
            abs(off) < width,  # along the margin
            (abs(off) < 2 * width) & (across < 90),  # parted by the veins
            abs(off + (wing.direction - 1000) // 6) < width,  # slanting across the cells
            (off > 0) & (2 * across < 6 * width - off),  # a wedge in each cell
        )
        self.paint(inside & bands[genes[f"{name}_band_kind"]], f"{name}_band")
        if name == "fore":
            slant = 4 * (self.x - self.y // 2) - genes["fore_length"]
            tips = (nowhere, slant > -10, abs(slant + 30) < 20)  # all of it, or a stripe before it
            self.paint(inside & tips[genes["tip_kind"]], "tip")
            mark = self.ellipse(wing.middle(2, 110), 45, 7, 3 + 3 * genes["mark_kind"])
            self.paint(inside & mark & (genes["mark_kind"] > 0), "mark")
        veins = (128 - across) * wing.radius < 1500 * genes["veins_kind"]  # as wide everywhere
        self.paint(inside & veins & (share > 40), "veins")
        border = genes[f"{name}_border"]
        waves = (0, across // 8, (128 - across) // 5)[genes["border_kind"]]  # at veins or between
        self.paint(inside & (border > 0) & (wing.margin < border + waves), "border")
        self._spots(wing, genes[f"{name}_spots"], max(border, 16), genes["spots_size"])
        self._eyes(wing, genes[f"{name}_eyes"], genes["eye_size"] // 4, genes["eye_place"])

    def _spots(self, wing: _Wing, kind: int, border: int, size: int) -> None:
        along = wing.across * wing.radius // 190  # about quarter pixels from the cell's middle
        row = wing.margin - max(border // 2, 3 * size // 2)
        spots = (
            wing.radius < 0,  # none
            along**2 + row**2 < size**2,  # dots
            (abs(along) < 2 * size) & (abs(row + abs(along) // 2 - 4) < size // 2),  # crescents
            (abs(along) < size // 2) & (abs(row) < 2 * size),  # dashes
        )
        self.paint(wing.inside & spots[kind], "spots")

    def _eyes(self, wing: _Wing, number: int, size: int, place: int) -> None:
        parts = {"eye_ring": size, "eye_centre": size * 2 // 3, "glint": size // 4}
        for cell in (1, 4, 3, 2)[:number]:
            for region, radius in parts.items():
                circle = self.ellipse(wing.middle(cell, place), 0, radius, radius)
                self.paint(wing.inside & circle, region)

    def _body(self, genes: dict[str, int]) -> None:
        self.tone = (1 + (self.x > 2)).astype(np.uint8)
        width = genes["body_width"]
        self.paint(self.polygon((0, -34), (2, -34), (26, -66), (24, -67)), "body")  # antenna
        self.paint(self.ellipse((25, -66), 50, 5, 2), "body")
        abdomen = self.ellipse((0, 14), 0, width - 1, 27)
        self.paint(abdomen, "body")
        belts = (self.y > 0) & (self.y % (10 - 2 * genes["belts_kind"]) < 3)
        self.paint(abdomen & belts & (genes["belts_kind"] > 0), "belt")
        self.paint(self.ellipse((0, -14), 0, width + 1, 15), "body")
        self.paint(self.ellipse((0, -32), 0, width - 1, 6), "body")
        self.paint(self.ellipse((width - 2, -34), 0, 2, 2), "eye")
