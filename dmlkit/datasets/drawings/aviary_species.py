"""The species of the aviary: what defines each of them, and its picture in index colours.

Species take their colours from one small palette and fall into ten genera of look-alikes, so no
single trait gives a species away. A sprite is a grid of region numbers, rasterised by integer
inequalities alone; the image that shows it chooses pose, light and the final colours.

``Dice``, ``inherit`` and ``Sprite`` serve the other drawn family as well (``butterfly_species``).
"""

import hashlib
import math
from functools import lru_cache

import numpy as np

SPRITE = (168, 240)  # rows and columns of a sprite; the bird faces right
ANIMAL = 64  # index of the first tone of the first region; those below are the background's
TONES = np.array([112, 100, 90, 78])  # percent: light from above, four tones from top to belly

PALETTE = np.array(  # plumage: blacks and greys, whites, browns, and a few bright colours
    [(28, 27, 30), (58, 58, 64), (98, 104, 112), (150, 152, 150), (238, 236, 228), (232, 214, 172)]
    + [(196, 160, 110), (178, 98, 48), (122, 58, 36), (78, 54, 40), (112, 112, 58), (226, 190, 50)]
    + [(228, 128, 40), (186, 44, 40), (58, 96, 160), (60, 130, 124)]
)
REGIONS = (
    "back", "wing", "flight", "tail", "breast", "belly", "throat", "head", "cap", "face", "bar",
    "marks", "bill", "legs", "tail_band", "rump",
)  # fmt: skip
SHAPES = {  # lowest and highest value of each gene, in sprite pixels, degrees or kinds
    "length": (40, 52), "depth": (24, 35), "posture": (12, 42), "head_size": (17, 25),
    "neck": (0, 10), "crest": (0, 3), "bill_length": (8, 32), "bill_depth": (4, 11),
    "bill_hook": (0, 7), "wing_length": (30, 44), "wing_depth": (12, 19), "legs_length": (8, 24),
    "tail_length": (22, 54), "tail_width": (5, 11), "tail_kind": (0, 2), "tail_bands": (0, 2),
    "bars": (0, 3), "bar_width": (3, 5), "flight_patch": (0, 1), "rump_patch": (0, 1),
    "marks_kind": (0, 3), "marks_period": (7, 11), "belly_line": (-2, 12),
    "face_kind": (0, 4), "cap_kind": (0, 2), "throat_kind": (0, 2),
}  # fmt: skip
EYE = np.array([(18, 16, 16), (236, 236, 232)])  # and the light reflected in it
# No value is near a tie, so rounding hides what the last bit of a processor's sine may be.
SINE = np.rint(1024 * np.sin(np.deg2rad(np.arange(450)))).astype(int).tolist()


@lru_cache(maxsize=256)
def draw_species(seed: int, species: int, share_percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sprite of a species and the colours (regions, 3) of its plumage and eye."""
    genes = species_genes(seed, species, share_percent)
    plumage = PALETTE[[genes[region] for region in REGIONS]]
    return _Bird(genes).indices, np.concatenate([plumage, EYE])


def species_genes(seed: int, species: int, share_percent: int = 50) -> dict[str, int]:
    """Return what defines a species: a palette entry per region, then shape and pattern."""
    colours = dict.fromkeys(REGIONS, (0, len(PALETTE) - 1))
    return inherit(colours, SHAPES, (seed,), species, share_percent)


def inherit(
    colours: dict[str, tuple[int, int]],
    shapes: dict[str, tuple[int, int]],
    replicate: tuple[str | int, ...],
    species: int,
    share_percent: int,
) -> dict[str, int]:
    """Return the genes of a species, each its own, its genus's or the replicate's ancestor's.

    Args:
        colours: lowest and highest value of each gene that is a colour.
        shapes: the same of the other genes.
        replicate: the seed, after the family's name where it has one.
        species: number of the species within the replicate.
        share_percent: how much ``shapes`` rather than ``colours`` tell species apart, 0 to 100.
    """
    own = Dice("species", *replicate, species)
    genus = Dice("genus", *replicate, own.between(0, 9))
    ancestor = Dice("ancestor", *replicate)
    # Towards the extremes fewer genes vary, so more of them must be new to keep species apart.
    new_percent = 18 + 18 * abs(share_percent - 50) // 50
    genes = {}
    for name, bounds in (colours | shapes).items():
        inherited, common, new = (dice.between(*bounds) for dice in (ancestor, genus, own))
        varies_percent = 2 * (100 - share_percent if name in colours else share_percent)
        varies, is_new = own.between(0, 99) < varies_percent, own.between(0, 99) < new_percent
        genes[name] = (new if is_new else common) if varies else inherited
    return genes


class Dice:
    """Random integers that depend on their key alone."""

    def __init__(self, *key: str | int, words: int = 1024) -> None:
        text = "/".join(map(str, key))
        self._bytes = hashlib.shake_256(text.encode()).digest(4 * words)
        self._words = np.frombuffer(self._bytes, dtype="<u4").astype(np.int64)
        self._used = 0

    def draw(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return integers from ``low`` to ``high``, both included."""
        start, self._used = self._used, self._used + math.prod(shape)
        return low + (self._words[start : self._used] * (high - low + 1) >> 32).reshape(shape)

    def between(self, low: int, high: int) -> int:
        """Return one such integer."""
        return int(self.draw(low, high, 1)[0])

    def triangular(self, shape: tuple[int, ...], strength: int) -> np.ndarray:
        """Return noise with a standard deviation of about ``strength``."""
        pairs = np.frombuffer(self._bytes, dtype=np.uint8).astype(np.int32).reshape(2, *shape)
        return (pairs[0] + pairs[1] - 255) * strength // 104


class Sprite:
    """An animal in index colours, painted region over region on a small grid.

    Args:
        regions: names of the parts that have a colour; ``eye`` and ``glint`` follow them.
        shape: rows and columns of the grid.
        origin: row and column of the point (0, 0).
    """

    def __init__(
        self, regions: tuple[str, ...], shape: tuple[int, int], origin: tuple[int, int]
    ) -> None:
        self.regions = (*regions, "eye", "glint")
        self.indices = np.zeros(shape, dtype=np.uint8)  # 0 is outside the animal
        grid = np.indices(shape) - np.array(origin)[:, None, None]
        self.y, self.x = grid.astype(np.int64)  # ellipses need more than 32 bits
        self.tone = np.uint8(1)  # which of ``TONES``, or one for each pixel

    def paint(self, mask: np.ndarray, region: str) -> None:
        """Paint ``mask`` (rows, columns) over what is there."""
        number = self.regions.index(region)
        np.copyto(self.indices, ANIMAL + len(TONES) * number + self.tone, where=mask)

    def axes(self, centre: tuple[int, int], degrees: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel coordinates along an axis raised by ``degrees``, and down across it."""
        cos, sin = SINE[degrees + 90], SINE[degrees]
        dx, dy = self.x - centre[0], self.y - centre[1]
        return (dx * cos - dy * sin) >> 10, (dx * sin + dy * cos) >> 10

    def ellipse(self, at: tuple[int, int], degrees: int, along: int, across: int) -> np.ndarray:
        """Return the inside of an ellipse with these half axes, turned by ``degrees``."""
        cos, sin = SINE[degrees + 90], SINE[degrees]
        dx, dy = self.x - at[0], self.y - at[1]
        u, v = dx * cos - dy * sin, dx * sin + dy * cos  # in 1024ths, for a smooth outline
        return (u * across) ** 2 + (v * along) ** 2 <= (1024 * along * across) ** 2

    def polygon(self, *corners: tuple[int, int]) -> np.ndarray:
        """Return the inside of a convex polygon, its corners in either order."""
        sides = [
            (self.x - x0) * (y1 - y0) - (self.y - y0) * (x1 - x0)
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        return np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)


class _Bird(Sprite):
    """A bird, painted from tail to eye."""

    def __init__(self, genes: dict[str, int]) -> None:
        super().__init__(REGIONS, SPRITE, (4, 24))  # leaves no bird at the border
        self.tone = ((self.y - 36) // 21).clip(0, len(TONES) - 1).astype(np.uint8)
        tilt = genes["posture"]
        chest = self._step((88, 88), tilt, genes["length"] - 6 + genes["neck"])
        self._tail(self._step((88, 88), tilt, 8 - genes["length"]), tilt - 8, genes)
        self._legs(86 + genes["depth"] + genes["legs_length"])
        self._body(chest, tilt, genes)
        self._wing(self._step((84, 82), tilt, 4), tilt + 4, genes)
        self._head((chest[0] - 2, chest[1] - 8), genes)

    def _tail(self, rump: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        u, v = self.axes(rump, tilt)
        end = genes["tail_length"] + (0 * v, 8 - abs(v), abs(v) - 10)[genes["tail_kind"]]
        tail = (u < 6) & (-u < end) & (abs(v) < genes["tail_width"] - u // 8)
        self.paint(tail, "tail")
        bands = (u > SPRITE[1], -u > genes["tail_length"] - 10, u % 12 < 5)  # none, end, bars
        self.paint(tail & bands[genes["tail_bands"]], "tail_band")

    def _legs(self, ground: int) -> None:
        for x in (84, 98):
            shank = self.polygon((x, 96), (x + 3, 96), (x + 5, ground), (x + 2, ground))
            toes = self.polygon((x, ground - 3), (x + 12, ground), (x - 2, ground))
            self.paint(shank | toes, "legs")

    def _body(self, chest: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        u, v = self.axes((88, 88), tilt)
        neck = (chest[0] + 88) // 2 + 4, (chest[1] + 84) // 2
        body = self.ellipse((88, 88), tilt, genes["length"], genes["depth"])
        body |= self.ellipse(neck, tilt + 14, 30, genes["head_size"])
        height = v + u // 6 - genes["belly_line"]
        breast = body & (height > -6) & (u > -10)
        self.paint(body, "back")
        self.paint(body & (u < 14 - genes["length"]) & (genes["rump_patch"] > 0), "rump")
        self.paint(body & (height > 0), "belly")
        self.paint(breast & (u > 6), "breast")
        period = genes["marks_period"]
        column, offset = u % period, u // period % 2 * 6
        marks = (
            u > SPRITE[1],  # none
            (column < period // 2) & ((v + offset) % 12 < 8),  # streaks
            (column - period // 2) ** 2 + ((v + offset) % 10 - 5) ** 2 < 11,  # spots
            2 * ((u + v // 3) % (period + 3)) < period + 3,  # bands
        )[genes["marks_kind"]]
        self.paint(breast & marks, "marks")

    def _wing(self, shoulder: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        length = genes["wing_length"]
        wing = self.ellipse(shoulder, tilt, length, genes["wing_depth"])
        u, v = self.axes(shoulder, tilt)
        self.paint(wing, "wing")
        self.paint(wing & (u < -v) & (v > 8 * genes["flight_patch"] - 4), "flight")
        for bar in range(genes["bars"]):
            inner = length - 18 - 13 * bar - v // 2
            self.paint(wing & (u <= inner) & (u > inner - genes["bar_width"]), "bar")

    def _head(self, centre: tuple[int, int], genes: dict[str, int]) -> None:
        (x, y), size = centre, genes["head_size"]
        if genes["crest"] > 1:
            peak = (x - size - 4, y - size - 8 * (genes["crest"] - 1))
            crest = self.polygon((x + size // 2, y - size + 5), (x - size + 3, y - 4), peak)
            self.paint(crest, "cap")
        base, depth = x + size - 6, genes["bill_depth"]
        tip = (x + size + genes["bill_length"], y + 2 + genes["bill_hook"])
        self.paint(self.polygon((base, y + 2 - depth), (base, y + 3 + depth), tip), "bill")
        u, v = self.axes(centre, 0)
        skull = self.ellipse(centre, 0, size + 2, size)
        self.paint(skull, "head")
        nothing = u > SPRITE[1]
        self.paint(skull & (nothing, v < -5, u < -2)[genes["cap_kind"]], "cap")  # crown or hood
        bib = (v > 7) & (v > 3 - size // 2 + abs(u - 6))
        chin = (v > 4) & (u + v > size // 2)
        self.paint(skull & (nothing, chin, bib)[genes["throat_kind"]], "throat")
        eye = (x + size // 3, y - size // 5)
        face = (
            nothing,
            abs(self.y - eye[1]) < 4,  # stripe through the eye
            abs(self.y - eye[1] + 7) < 3,  # brow
            self.ellipse(eye, 0, 14, 9),  # mask
            self.ellipse((x, y + size // 3), 0, size // 2, size // 3),  # cheek
        )[genes["face_kind"]]
        self.paint(skull & face, "face")
        self.paint(self.ellipse(eye, 0, 4, 4), "eye")
        self.paint(self.ellipse((eye[0] + 1, eye[1] - 2), 0, 1, 1), "glint")

    @staticmethod
    def _step(start: tuple[int, int], degrees: int, distance: int) -> tuple[int, int]:
        """Return the point at ``distance`` from ``start`` towards the head."""
        cos, sin = SINE[degrees + 90], SINE[degrees]
        return start[0] + (distance * cos >> 10), start[1] - (distance * sin >> 10)
