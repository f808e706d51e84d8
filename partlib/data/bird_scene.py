"""One picture of a toy bird, as a description: to draw, to ask where the parts are, to change one thing at a time."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw

from .bird_parts import HEAD, JOINTS, PARTS, TRUNK, Stroke, flat, part_strokes, shade
from .bird_scenery import Backdrop, cover, perch, pick

FINE = 3  # a pixel is the mean of FINE × FINE subpixels
ABSENT = 0.05  # how often a part is missing, each part by itself
COVERED = 0.4  # how often a leaf or a twig is in front of the bird
FEWEST = 6  # a part with fewer visible pixels than this counts as hidden

NAMES = tuple(PARTS)
BODY, SCENERY = len(NAMES), len(NAMES) + 1  # what a stroke can show beside the parts 0 … 6
ORDER = ("tail", "legs", "beak", "body", "breast", "crown", "eye", "wing")  # from back to front

PLUMAGE = ((176, 158, 136), (152, 152, 150), (146, 148, 116), (130, 142, 162), (198, 186, 164))


@dataclass(frozen=True)
class Pose:
    """How the bird sits in the picture: lengths as shares of the picture's side, angles in radians."""

    centre: complex
    scale: float
    turn: float
    aspect: float
    flip: bool
    head: float
    wing: float
    tail: float

    @classmethod
    def random(cls, rng):
        centre, scale = complex(rng.uniform(0.44, 0.56), rng.uniform(0.46, 0.58)), rng.uniform(0.27, 0.38)
        turn, head, wing, tail = (rng.uniform(-1, 1, 4) * (0.2, 0.3, 0.12, 0.3)).tolist()
        return cls(centre, scale, turn, rng.uniform(0.92, 1.1), rng.random() < 0.5, head, wing, tail)

    def place(self, z, joint="body"):
        """Bird coordinates → shares of the picture's side."""
        if joint != "body":
            z = JOINTS[joint] + (z - JOINTS[joint]) * np.exp(1j * getattr(self, joint))
        z = z.real * self.aspect + 1j * z.imag / self.aspect
        return self.centre + self.scale * np.exp(1j * self.turn) * (-z.conjugate() if self.flip else z)


@dataclass(frozen=True)
class Light:
    """Brightness, warmth, and how the brightness slopes over the picture."""

    gain: float
    warmth: float
    slope: complex

    @classmethod
    def random(cls, rng):
        return cls(rng.uniform(0.82, 1.1), rng.uniform(-0.08, 0.08), complex(*rng.uniform(-0.25, 0.25, 2)))

    def on(self, picture: Float[np.ndarray, "h h 3"]):
        axis = np.linspace(-1, 1, len(picture), dtype=np.float32)
        level = self.gain * (1 + self.slope.real * axis + self.slope.imag * axis[:, None])
        return picture * level[..., None] * np.array([1 + self.warmth, 1, 1 - self.warmth], dtype=np.float32)


@dataclass(frozen=True)
class Scene:
    """One picture of one bird, as a description; `without`, `swap` and `background` describe a changed one.

    A pixel belongs to the part that covers more than half of it, after everything in front is taken off.
    When a part changes, every pixel that it does not touch (`coverage` 0 before and after) keeps its
    bytes; pixels on the part's border, which it covers by half or less, may change with it.

    Args:
        variants: the variant number of each of the seven parts.
        missing: names of the parts that are not drawn.
        table: the variants of every class, for `swap`.
        size: the picture's side in pixels.
        perch, cover, grain: seeds of what the bird sits on, of what is in front (None: nothing), of the noise.
    """

    variants: tuple[int, ...]
    missing: frozenset[str]
    table: Int[np.ndarray, "c 7"] = field(repr=False, compare=False)
    size: int
    pose: Pose
    light: Light
    backdrop: Backdrop
    plumage: tuple[int, int, int]
    perch: int
    cover: int | None
    grain: int

    @classmethod
    def random(cls, rng, label, table, size):
        """A bird of class `label` in a scene drawn by chance; the chances are the same for every class."""
        missing = frozenset(name for name, chance in zip(NAMES, rng.random(len(NAMES))) if chance < ABSENT)
        details, perch, grain, cover = (int(s) for s in rng.integers(2**32, size=4))
        return cls(
            variants=tuple(table[label].tolist()), missing=missing, table=table, size=size,
            pose=Pose.random(rng), light=Light.random(rng), backdrop=Backdrop(pick(rng, Backdrop.KINDS), details),
            plumage=pick(rng, PLUMAGE), perch=perch, cover=cover if rng.random() < COVERED else None, grain=grain,
        )  # fmt: skip

    # ---- changed one thing at a time ----

    def without(self, part):
        """The same scene without a part: what is behind it shows."""
        return replace(self, missing=self.missing | {NAMES[_index(part)]})

    def swap(self, part, other_class):
        """The same scene with the part as class number `other_class` has it; a missing part stays missing."""
        at, classes = _index(part), len(self.table)
        if other_class not in range(classes):
            raise IndexError(
                f"there is no class {other_class!r}: the {classes} classes are numbered 0 to {classes - 1}"
            )
        return replace(self, variants=(*self.variants[:at], int(self.table[other_class, at]), *self.variants[at + 1 :]))

    def background(self, other):
        """The same scene in front of the backdrop of another scene."""
        if not isinstance(other, Scene):
            raise TypeError(f"background takes the scene whose backdrop to use, such as photos.scene(3), not {other!r}")
        return replace(self, backdrop=other.backdrop)

    # ---- drawn ----

    def render(self):
        """The picture, RGB."""
        painted, colours, _ = self._paint()
        opaque = np.asarray(painted.point([0] + [255] * 255).reduce(FINE), dtype=np.float32)[..., None] / 255
        painted.putpalette(np.array(colours, dtype=np.uint8).tobytes())
        front = np.asarray(painted.convert("RGB").reduce(FINE), dtype=np.float32)
        height = np.arange(self.size, dtype=np.float32)[:, None, None] / self.size - self.pose.centre.imag
        front = front * (1.02 - 0.13 * height / self.pose.scale)  # a round body is darker below
        picture = self.light.on(front + np.asarray(self.backdrop.render(self.size)) * (1 - opaque))
        grain = np.random.default_rng(self.grain).integers(-5, 6, (self.size, self.size, 1), dtype=np.int8)
        return Image.fromarray(np.uint8(np.clip(picture + grain, 0, 255)))

    @cached_property
    def coverage(self) -> Float[np.ndarray, "8 size size"]:
        """Which share of each pixel each part covers, visibly, and last the rest of the body."""
        painted, _, shows = self._paint()
        # Nine subpixels need four bits, so eight counts fit into one 32-bit sum.
        digits = np.array([0 if what == SCENERY else 1 << 4 * what for what in shows], dtype=np.uint32)
        packed = digits[np.asarray(painted)]
        counts = sum(packed[y::FINE, x::FINE] for y in range(FINE) for x in range(FINE))
        return np.stack([counts >> 4 * what & 15 for what in range(BODY + 1)]).astype(np.float32) / FINE**2

    def part_masks(self) -> Bool[np.ndarray, "7 size size"]:
        """The visible pixels of each part; no pixel belongs to two."""
        return self.coverage[:BODY] > 0.5

    def mask(self) -> Bool[np.ndarray, "size size"]:
        """The visible pixels of the bird."""
        return self.coverage.sum(axis=0) > 0.5

    def keypoints(self) -> Float[np.ndarray, "7 3"]:
        """For each part x, y of its visible pixel nearest to the mean of them all, and 1; zeros where it is hidden."""
        points = np.zeros((len(NAMES), 3))
        for point, mask in zip(points, self.part_masks()):
            y, x = np.nonzero(mask)
            if len(x) >= FEWEST:
                nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
                point[:] = x[nearest], y[nearest], 1
        return points

    def box(self) -> Float[np.ndarray, "4"]:
        """x0, y0, x1, y1 around the visible bird, x1 and y1 just outside; all 0 where nothing of it is visible."""
        y, x = np.nonzero(self.mask())
        return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4, dtype=float)

    def _paint(self):
        """An image of stroke numbers at the subpixels, and each stroke's colour and what it shows; 0 is the backdrop.

        The picture and the masks come from this one image, so that they cannot disagree.
        """
        side = self.size * FINE
        painted = Image.new("L", (side, side))
        draw, colours, shows = ImageDraw.Draw(painted), [(0, 0, 0)], [SCENERY]
        rim_width = max(1, round(0.03 * self.pose.scale * side))

        def ink(colour, what):
            colours.append(colour)
            shows.append(what)
            return len(colours) - 1

        def put(strokes, what, joint="body"):
            for points, colour, rim in strokes:
                xy = flat(side * self.pose.place(points, joint))
                if rim:
                    draw.line(xy + xy[:4], fill=ink(shade(colour, -0.5), what), width=rim_width)
                draw.polygon(xy, fill=ink(colour, what))

        put(perch(self.perch), SCENERY)
        for name in ORDER:
            if name == "body":
                put([Stroke(TRUNK, self.plumage)], BODY)
                put([Stroke(HEAD, self.plumage)], BODY, "head")
                put([Stroke(TRUNK, self.plumage, False)], BODY)  # the trunk again, over the head's rim
            elif name not in self.missing:
                at = NAMES.index(name)
                put(part_strokes(name, self.variants[at]), at, PARTS[name].joint)
        if self.cover is not None:
            put(cover(self.cover), SCENERY)
        return painted, colours, shows


def _index(part):
    if part not in NAMES:
        raise ValueError(f"a bird has no {part!r}: its parts are {', '.join(NAMES)}")
    return NAMES.index(part)
