"""Aviary: a fine-grained image set of drawn birds, the book's embedded data set.

A class is a species (plumage colours, wing bars, breast marks, face, bill, crest, tail, build); an
image is one bird of it in some pose, light, place and weather. Species take their colours from one
small palette and fall into ten genera of look-alikes, so no single trait gives a species away.

A picture is an index map (192 x 192, one byte per pixel) and a table of 256 colours. A species is
rasterised once by integer inequalities, and each image samples that sprite through an integer map;
light and individual plumage only touch the table. Every choice is an integer read from SHAKE-256:
the bytes are the same on every machine and under every version of the libraries.

The difficulty was frozen before any metric-learning loss was compared on the set, on what knows
nothing of metric learning. Recall@1, 50 unseen species x 24 images at 48 px, mean of seeds 0-2
(chance .02); the classifier is a small ConvNet trained with cross-entropy on 50 other species:

| pattern_share                           |   0 | 0.5 |   1 |
|-----------------------------------------|-----|-----|-----|
| colour histogram, 4 x 4 x 4             | .11 | .12 | .04 |
| raw pixels, centred                     | .24 | .26 | .08 |
| untrained ConvNet, pooled               | .07 | .07 | .03 |
| classifier, 150 steps of 64 images      | .61 | .59 | .23 |
| classifier, 750 steps                   |     | .73 |     |
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CANVAS = 192  # side of the square on which every picture is drawn before it is reduced
SPRITE = (168, 240)  # rows and columns of a species' sprite; the bird faces right
TONES = np.array([112, 100, 90, 78])  # percent: light from above, four tones from top to belly

PALETTE = np.array(  # plumage: blacks and greys, whites, browns, and a few bright colours
    [(28, 27, 30), (58, 58, 64), (98, 104, 112), (150, 152, 150), (238, 236, 228), (232, 214, 172)]
    + [(196, 160, 110), (178, 98, 48), (122, 58, 36), (78, 54, 40), (112, 112, 58), (226, 190, 50)]
    + [(228, 128, 40), (186, 44, 40), (58, 96, 160), (60, 130, 124)]
)
SCENERY = np.array(  # sky and water, leaves, wood and earth, autumn, stone
    [(150, 190, 226), (206, 222, 232), (92, 140, 190), (70, 104, 54), (120, 150, 70), (44, 66, 44)]
    + [(130, 104, 74), (176, 150, 112), (84, 66, 52), (196, 120, 56), (208, 180, 84)]
    + [(146, 146, 144), (214, 206, 190), (62, 84, 100), (170, 96, 92), (40, 40, 46)]
)
# Background: cell and weight of the noise, period, direction and weight of the waves, gradient.
BACKGROUNDS = {
    "sky": (48, 40, 96, (0, 8), 10, 1),
    "foliage": (12, 150, 64, (6, 6), 30, 0),
    "boughs": (24, 60, 80, (6, 3), 120, 0),
    "water": (24, 60, 22, (1, 8), 110, 0),
    "reeds": (24, 50, 20, (8, 1), 120, 0),
}
REGIONS = [
    "back",
    "wing",
    "flight",
    "tail",
    "breast",
    "belly",
    "throat",
    "head",
    "cap",
    "face",
    "bar",
] + ["marks", "bill", "legs", "tail_band", "rump"]
SHAPES = {  # lowest and highest value of each gene, in sprite pixels, degrees or kinds
    "length": (40, 52), "depth": (24, 35), "posture": (12, 42), "head_size": (17, 25),
    "neck": (0, 10), "crest": (0, 3), "bill_length": (8, 32), "bill_depth": (4, 11),
    "bill_hook": (0, 7), "wing_length": (30, 44), "wing_depth": (12, 19), "legs_length": (8, 24),
    "tail_length": (22, 54), "tail_width": (5, 11), "tail_kind": (0, 2), "tail_bands": (0, 2),
    "bars": (0, 3), "bar_width": (3, 5), "flight_patch": (0, 1), "rump_patch": (0, 1),
    "marks_kind": (0, 3), "marks_period": (7, 11), "belly_line": (-2, 12),
    "face_kind": (0, 4), "cap_kind": (0, 2), "throat_kind": (0, 2),
}  # fmt: skip
FACTORS = {  # lowest and highest value of what varies between the images of a species
    "rotation": (-45, 45),  # degrees, positive lifts the head
    "mirrored": (0, 1),  # 1: the whole picture is flipped, so the bird faces left
    "scale": (100, 150),  # percent
    "foreshortening": (70, 100),  # percent of its length left by a turn out of the picture plane
    "bend": (-30, 30),  # curve of the back, positive lifts head and tail
    "x": (-40, 40),  # canvas pixels, positive towards the side the bird faces
    "y": (-30, 30),  # canvas pixels, positive is down
    "brightness": (85, 115),  # percent
    "warmth": (-10, 10),  # percent more red and less blue
    "haze": (0, 14),  # percent of the colour lost to grey
    "background": (0, len(BACKGROUNDS) - 1),  # which of ``BACKGROUNDS``
    "leaves": (0, 5),  # how many hang in the picture
    "blur": (0, 3),  # passes of a 1-2-1 filter
    "noise": (2, 7),  # grey levels, about the standard deviation of the sensor noise
}
# No value is near a tie, so rounding hides what the last bit of a processor's sine may be.
_SIN = np.rint(1024 * np.sin(np.deg2rad(np.arange(450)))).astype(int).tolist()
_GRID = np.arange(CANVAS, dtype=np.int32) - CANVAS // 2  # canvas coordinates from the centre
_BIRD, _PERCH, _LEAF = 64, 240, 242  # first index of each layer; below are the background's


@dataclass(frozen=True)
class Aviary:
    """A drawn set of N images, class by class.

    Attributes:
        images: (N, 3, S, S) uint8, RGB.
        labels: (N,) int64, from 0.
        class_names: a readable name per class.
        factors: (N,) int16 each, the keys of ``FACTORS`` and ``hidden``, the percentage of the bird
            that leaves cover.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    factors: dict[str, np.ndarray]


def draw_aviary(
    num_classes: int,
    images_per_class: int,
    seed: int,
    *,
    image_size: int = 48,
    pattern_share: float = 0.5,
) -> Aviary:
    """Draw ``images_per_class`` images of each of ``num_classes`` species.

    Asking for more classes or more images leaves the earlier ones as they are.

    Args:
        num_classes: number of species.
        images_per_class: number of images of each.
        seed: the replicate; other seeds have other species.
        image_size: side S in pixels, a divisor of 192 from 16 on.
        pattern_share: how much pattern and shape rather than colour tells species apart. At 1 all
            species of a seed wear the same colours, at 0 the same pattern and shape.
    """
    for name, number in {"num_classes": num_classes, "images_per_class": images_per_class}.items():
        if number < 1:
            raise ValueError(f"{name}={number} draws nothing; ask for at least 1")
    drawn = [
        draw_image(seed, species, index, image_size=image_size, pattern_share=pattern_share)
        for species in range(num_classes)
        for index in range(images_per_class)
    ]
    return Aviary(
        images=np.stack([image for image, _ in drawn]),
        labels=np.repeat(np.arange(num_classes, dtype=np.int64), images_per_class),
        class_names=[f"species {species:03d}" for species in range(num_classes)],
        factors={
            name: np.array([factors[name] for _, factors in drawn], dtype=np.int16)
            for name in drawn[0][1]
        },
    )


def draw_image(
    seed: int,
    species: int,
    index: int,
    *,
    image_size: int = 48,
    pattern_share: float = 0.5,
    **fixed: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """Draw one image (3, S, S) uint8 and return it with its factors.

    ``fixed`` sets factors by name and leaves the rest: the same bird in another light, say.
    """
    if image_size < 16 or CANVAS % image_size:
        raise ValueError(f"image_size={image_size} is not possible; use 24, 32, 48, 64, 96 or 192")
    if not 0 <= pattern_share <= 1:
        raise ValueError(f"pattern_share={pattern_share} is not a share; use a number from 0 to 1")
    if unknown := sorted(fixed.keys() - FACTORS.keys()):
        raise ValueError(f"unknown factors {unknown}; choose from {sorted(FACTORS)}")
    key = (seed, species, index)  # a stream of its own per layer: fixing one leaves the others
    dice = _Dice("factors", *key)
    # The mean of two draws: most images are moderate, a few are hard in one way or another.
    factors = {name: int(dice.draw(*FACTORS[name], 2).sum()) // 2 for name in FACTORS}
    factors |= {name: dice.between(*FACTORS[name]) for name in ("mirrored", "background")} | fixed
    sprite, colours = _species(seed, species, round(100 * pattern_share))

    bird = _pose(sprite, factors)
    canvas = np.where(bird > 0, bird, _scene(_Dice("scene", *key), factors))
    _hang_leaves(canvas, _Dice("leaves", *key), factors["leaves"])
    seen = np.count_nonzero((canvas >= _BIRD) & (canvas < _PERCH))
    factors["hidden"] = 100 - 100 * seen // max(np.count_nonzero(bird), 1)

    table = _colour_table(colours, _Dice("colours", *key), factors)
    image = _reduce(table, canvas, CANVAS // image_size)
    image = _blur(image, factors["blur"], max(1, image_size // 48))
    noise = _Dice("noise", *key, words=image.size // 2)
    image = (image + noise.triangular(image.shape, factors["noise"])).clip(0, 255).astype(np.uint8)
    return image[:, :, ::-1] if factors["mirrored"] else image, factors


def species_genes(seed: int, species: int, share_percent: int = 50) -> dict[str, int]:
    """Return what defines a species: a palette entry per region, then shape and pattern.

    Each gene comes from the species, from its genus or from an ancestor of the whole replicate.
    """
    own = _Dice("species", seed, species)
    genus = _Dice("genus", seed, own.between(0, 9))
    ancestor = _Dice("ancestor", seed)
    # Towards the extremes fewer genes vary, so more of them must be new to keep species apart.
    new_percent = 18 + 18 * abs(share_percent - 50) // 50
    genes = {}
    for name, bounds in (dict.fromkeys(REGIONS, (0, len(PALETTE) - 1)) | SHAPES).items():
        inherited, common, new = (dice.between(*bounds) for dice in (ancestor, genus, own))
        varies_percent = 2 * (100 - share_percent if name in REGIONS else share_percent)
        varies, is_new = own.between(0, 99) < varies_percent, own.between(0, 99) < new_percent
        genes[name] = (new if is_new else common) if varies else inherited
    return genes


class _Dice:
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


class _Sprite:
    """A bird in index colours, painted region over region on a small grid."""

    def __init__(self, genes: dict[str, int]) -> None:
        self.indices = np.zeros(SPRITE, dtype=np.uint8)  # 0 is outside the bird
        grid = np.mgrid[-4 : SPRITE[0] - 4, -24 : SPRITE[1] - 24]  # leaves no bird at the border
        self.y, self.x = grid.astype(np.int64)  # ellipses need more than 32 bits
        self.tone = ((self.y - 36) // 21).clip(0, len(TONES) - 1).astype(np.uint8)
        tilt = genes["posture"]
        chest = self._step((88, 88), tilt, genes["length"] - 6 + genes["neck"])
        self._tail(self._step((88, 88), tilt, 8 - genes["length"]), tilt - 8, genes)
        self._legs(86 + genes["depth"] + genes["legs_length"])
        self._body(chest, tilt, genes)
        self._wing(self._step((84, 82), tilt, 4), tilt + 4, genes)
        self._head((chest[0] - 2, chest[1] - 8), genes)

    def _tail(self, rump: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        u, v = self._axes(rump, tilt)
        end = genes["tail_length"] + (0 * v, 8 - abs(v), abs(v) - 10)[genes["tail_kind"]]
        tail = (u < 6) & (-u < end) & (abs(v) < genes["tail_width"] - u // 8)
        self._paint(tail, "tail")
        bands = (u > SPRITE[1], -u > genes["tail_length"] - 10, u % 12 < 5)  # none, end, bars
        self._paint(tail & bands[genes["tail_bands"]], "tail_band")

    def _legs(self, ground: int) -> None:
        for x in (84, 98):
            shank = self._polygon((x, 96), (x + 3, 96), (x + 5, ground), (x + 2, ground))
            toes = self._polygon((x, ground - 3), (x + 12, ground), (x - 2, ground))
            self._paint(shank | toes, "legs")

    def _body(self, chest: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        u, v = self._axes((88, 88), tilt)
        neck = (chest[0] + 88) // 2 + 4, (chest[1] + 84) // 2
        body = self._ellipse((88, 88), tilt, genes["length"], genes["depth"])
        body |= self._ellipse(neck, tilt + 14, 30, genes["head_size"])
        height = v + u // 6 - genes["belly_line"]
        breast = body & (height > -6) & (u > -10)
        self._paint(body, "back")
        self._paint(body & (u < 14 - genes["length"]) & (genes["rump_patch"] > 0), "rump")
        self._paint(body & (height > 0), "belly")
        self._paint(breast & (u > 6), "breast")
        period = genes["marks_period"]
        column, offset = u % period, u // period % 2 * 6
        marks = (
            u > SPRITE[1],  # none
            (column < period // 2) & ((v + offset) % 12 < 8),  # streaks
            (column - period // 2) ** 2 + ((v + offset) % 10 - 5) ** 2 < 11,  # spots
            2 * ((u + v // 3) % (period + 3)) < period + 3,  # bands
        )[genes["marks_kind"]]
        self._paint(breast & marks, "marks")

    def _wing(self, shoulder: tuple[int, int], tilt: int, genes: dict[str, int]) -> None:
        length = genes["wing_length"]
        wing = self._ellipse(shoulder, tilt, length, genes["wing_depth"])
        u, v = self._axes(shoulder, tilt)
        self._paint(wing, "wing")
        self._paint(wing & (u < -v) & (v > 8 * genes["flight_patch"] - 4), "flight")
        for bar in range(genes["bars"]):
            inner = length - 18 - 13 * bar - v // 2
            self._paint(wing & (u <= inner) & (u > inner - genes["bar_width"]), "bar")

    def _head(self, centre: tuple[int, int], genes: dict[str, int]) -> None:
        (x, y), size = centre, genes["head_size"]
        if genes["crest"] > 1:
            peak = (x - size - 4, y - size - 8 * (genes["crest"] - 1))
            crest = self._polygon((x + size // 2, y - size + 5), (x - size + 3, y - 4), peak)
            self._paint(crest, "cap")
        base, depth = x + size - 6, genes["bill_depth"]
        tip = (x + size + genes["bill_length"], y + 2 + genes["bill_hook"])
        self._paint(self._polygon((base, y + 2 - depth), (base, y + 3 + depth), tip), "bill")
        u, v = self._axes(centre, 0)
        skull = self._ellipse(centre, 0, size + 2, size)
        self._paint(skull, "head")
        nothing = u > SPRITE[1]
        self._paint(skull & (nothing, v < -5, u < -2)[genes["cap_kind"]], "cap")  # crown or hood
        bib = (v > 7) & (v > 3 - size // 2 + abs(u - 6))
        chin = (v > 4) & (u + v > size // 2)
        self._paint(skull & (nothing, chin, bib)[genes["throat_kind"]], "throat")
        eye = (x + size // 3, y - size // 5)
        face = (
            nothing,
            abs(self.y - eye[1]) < 4,  # stripe through the eye
            abs(self.y - eye[1] + 7) < 3,  # brow
            self._ellipse(eye, 0, 14, 9),  # mask
            self._ellipse((x, y + size // 3), 0, size // 2, size // 3),  # cheek
        )[genes["face_kind"]]
        self._paint(skull & face, "face")
        self._paint(self._ellipse(eye, 0, 4, 4), "eye")
        self._paint(self._ellipse((eye[0] + 1, eye[1] - 2), 0, 1, 1), "glint")

    def _paint(self, mask: np.ndarray, region: str) -> None:
        number = [*REGIONS, "eye", "glint"].index(region)
        np.copyto(self.indices, _BIRD + len(TONES) * number + self.tone, where=mask)

    def _axes(self, centre: tuple[int, int], degrees: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel coordinates along (towards the head) and across (towards the belly)."""
        cos, sin = _SIN[degrees + 90], _SIN[degrees]
        dx, dy = self.x - centre[0], self.y - centre[1]
        return (dx * cos - dy * sin) >> 10, (dx * sin + dy * cos) >> 10

    def _ellipse(self, at: tuple[int, int], degrees: int, along: int, across: int) -> np.ndarray:
        cos, sin = _SIN[degrees + 90], _SIN[degrees]
        dx, dy = self.x - at[0], self.y - at[1]
        u, v = dx * cos - dy * sin, dx * sin + dy * cos  # in 1024ths, for a smooth outline
        return (u * across) ** 2 + (v * along) ** 2 <= (1024 * along * across) ** 2

    def _polygon(self, *corners: tuple[int, int]) -> np.ndarray:
        """Return the inside of a convex polygon, its corners in either order."""
        sides = [
            (self.x - x0) * (y1 - y0) - (self.y - y0) * (x1 - x0)
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        return np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)

    @staticmethod
    def _step(start: tuple[int, int], degrees: int, distance: int) -> tuple[int, int]:
        """Return the point at ``distance`` from ``start`` towards the head."""
        cos, sin = _SIN[degrees + 90], _SIN[degrees]
        return start[0] + (distance * cos >> 10), start[1] - (distance * sin >> 10)


@lru_cache(maxsize=256)
def _species(seed: int, species: int, share_percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sprite of a species and the colours (regions, 3) of its plumage and eye."""
    genes = species_genes(seed, species, share_percent)
    plumage = PALETTE[[genes[region] for region in REGIONS]]
    return _Sprite(genes).indices, np.concatenate([plumage, [(18, 16, 16), (236, 236, 232)]])


def _pose(sprite: np.ndarray, factors: dict[str, int]) -> np.ndarray:
    """Return the canvas (192, 192) with the bird on it and 0 elsewhere."""
    cos, sin = _SIN[factors["rotation"] % 360 + 90], _SIN[factors["rotation"] % 360]
    along, across = factors["scale"] * factors["foreshortening"], factors["scale"] * 100
    x, y = _GRID - factors["x"], (_GRID - factors["y"])[:, None]
    u = (x * (cos * 10000 // along) - y * (sin * 10000 // along)) >> 10
    v = (x * (sin * 10000 // across) + y * (cos * 10000 // across)) >> 10
    v += (u * u * factors["bend"]) >> 14
    rows, columns = SPRITE
    u = (u + columns // 2).clip(0, columns - 1)  # the sprite's border is empty
    v = (v + rows // 2).clip(0, rows - 1)
    return sprite.ravel().take(v * columns + u)


def _scene(dice: _Dice, factors: dict[str, int]) -> np.ndarray:
    """Return the background (192, 192), indices below 64, with a perch across it."""
    kind = list(BACKGROUNDS)[factors["background"]]
    cell, roughness, period, (across, down), waviness, gradient = BACKGROUNDS[kind]
    x = np.arange(CANVAS // 2)  # half the resolution is enough for what is out of focus
    y = x[:, None]
    corner, rest = np.divmod(2 * x, cell)
    corners = dice.draw(0, 255, CANVAS // cell + 1, CANVAS // cell + 1)
    rows = corners[corner] * (cell - rest)[:, None] + corners[corner + 1] * rest[:, None]
    noise = (rows[:, corner] * (cell - rest) + rows[:, corner + 1] * rest) // cell**2  # (96, 96)
    lean = dice.between(-2, 2)
    phase = (x * (across + lean) + y * (down - lean)) // 4 + noise // 6
    wave = abs(phase % period * 2 - period) * 255 // period
    level = noise * roughness + wave * waviness + y * 240 * gradient
    level = level // (4 * (roughness + waviness + 110 * gradient))
    scene = level.clip(0, _BIRD - 1).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    height, slope, width = dice.between(54, 70), dice.between(-300, 300), dice.between(2, 5)
    distance = (_GRID - factors["y"] - height)[:, None] * 1024 - _GRID * slope
    scene[abs(distance) < 1024 * width] = _PERCH
    return scene


def _hang_leaves(canvas: np.ndarray, dice: _Dice, number: int) -> None:
    """Draw ``number`` leaves with midribs on the canvas."""
    for leaf in range(number):
        left, top = dice.between(16, 176), dice.between(26, 166)
        degrees, length, width = dice.between(0, 359), dice.between(16, 34), dice.between(6, 13)
        cos, sin = _SIN[degrees + 90], _SIN[degrees]
        window = (
            slice(max(0, top - length), min(CANVAS, top + length)),
            slice(max(0, left - length), min(CANVAS, left + length)),
        )
        y, x = np.ogrid[window]
        y, x = y - top, x - left
        u, v = (x * cos + y * sin) >> 10, (y * cos - x * sin) >> 10
        inside = abs(v) * length**2 <= width * (length**2 - u * u)
        np.copyto(canvas[window], np.uint8(_LEAF + 2 * (leaf % 7)), where=inside)
        np.copyto(canvas[window], np.uint8(_LEAF + 2 * (leaf % 7) + 1), where=inside & (abs(v) < 2))


def _colour_table(colours: np.ndarray, dice: _Dice, factors: dict[str, int]) -> np.ndarray:
    """Return the colours (3, 256) of background, bird, perch and leaves in the image's light."""
    table = np.zeros((256, 3), dtype=np.int64)
    stops = SCENERY[dice.draw(0, len(SCENERY) - 1, 4)] + dice.draw(-16, 16, 4, 3)
    stops = (2 * stops + 3 * (stops.sum(axis=0) // 4) + 3 * 120) // 8  # one tone, out of focus
    stop, rest = np.divmod(np.arange(_BIRD) * 3, _BIRD)
    rest = rest[:, None]
    table[:_BIRD] = (stops[stop] * (_BIRD - rest) + stops[stop + 1] * rest) // _BIRD
    # No two birds of a species are alike: each region and the whole bird differ a little.
    plumage = colours + dice.draw(-8, 8, *colours.shape) + dice.draw(-6, 6, 3)
    tones = (plumage[:, None] * TONES[:, None] // 100).reshape(-1, 3)
    table[_BIRD : _BIRD + len(tones)] = tones
    leaves = SCENERY[dice.draw(0, len(SCENERY) - 1, 8)] + dice.draw(-30, 30, 8, 3)
    table[_PERCH::2], table[_PERCH + 1 :: 2] = leaves, leaves * 3 // 4  # leaf and midrib
    warmth, haze = factors["warmth"], factors["haze"]
    gain = factors["brightness"] * np.array([100 + warmth, 100, 100 - warmth])
    lit = (table * gain // 10000).clip(0, 255)
    return ((lit * (100 - haze) + 150 * haze) // 100).T.astype(np.uint16)


def _reduce(table: np.ndarray, canvas: np.ndarray, factor: int) -> np.ndarray:
    """Colour the canvas and average its ``factor`` x ``factor`` boxes: (3, S, S) int32."""
    planes = table.take(canvas, axis=1)  # uint16, in which the sum of a box of 12 x 12 still fits
    rows = sum(planes[:, offset::factor] for offset in range(factor))
    boxes = sum(rows[:, :, offset::factor] for offset in range(factor))
    return (boxes // factor**2).astype(np.int32)


def _blur(image: np.ndarray, passes: int, step: int) -> np.ndarray:
    """Smooth with a 1-2-1 filter whose taps are ``step`` pixels apart, edges repeated."""
    size = image.shape[1]
    ahead, behind = ((np.arange(size) + k).clip(0, size - 1) for k in (step, -step))
    for _ in range(passes):
        image = (image.take(ahead, 1) + 2 * image + image.take(behind, 1) + 2) // 4
        image = (image.take(ahead, 2) + 2 * image + image.take(behind, 2) + 2) // 4
    return image
