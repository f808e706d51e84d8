"""What surrounds a toy bird: five kinds of backdrop, something to sit on, and leaves and twigs in front."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .bird_parts import COLOURS, Stroke, bar, disc, feather, flat, leaf, shade, smooth

WOOD = ((112, 80, 58), (92, 74, 66), (140, 112, 84))
GREEN = ((84, 138, 66), (122, 160, 72), (58, 108, 74))
AUTUMN = (*GREEN, COLOURS["orange"], COLOURS["red"], COLOURS["yellow"])
SKIES = (
    ((120, 174, 226), (226, 236, 240)), ((244, 186, 140), (250, 226, 196)),
    ((150, 160, 176), (214, 218, 222)), ((108, 130, 190), (240, 196, 190)),
)  # fmt: skip


def pick(rng, options):
    """One of the options by chance."""
    return options[rng.integers(len(options))]


@dataclass(frozen=True)
class Backdrop:
    """What is behind it all: one of five kinds, and the seed of the details."""

    kind: str
    seed: int

    KINDS = ("sky", "foliage", "branches", "stripes", "meadow")

    def render(self, size):
        """Out of focus: drawn at 256 pixels a side whatever the picture's size, reduced to 128, enlarged."""
        rng = np.random.default_rng(self.seed)
        sky, green, wood, colour = pick(rng, SKIES), pick(rng, GREEN), pick(rng, WOOD), self._any_colour(rng)
        above, below = sky if self.kind in ("sky", "branches") else (shade(green, 0.35), shade(green, -0.3))
        ramp = np.linspace(0, 1, 256)[:, None, None]
        image = Image.fromarray(np.uint8(np.broadcast_to(above + (np.array(below) - above) * ramp, (256, 256, 3))))
        draw = ImageDraw.Draw(image)

        def put(outline, colour):
            draw.polygon(flat(256 * outline), fill=colour)

        def anywhere(number):
            return rng.uniform(-0.05, 1.05, (number, 2)) @ (1, 1j)

        def direction():
            return np.exp(1j * rng.uniform(0, 2 * np.pi))

        if self.kind == "sky":
            for z in anywhere(4):
                for k in range(3):
                    put(disc(z + 0.08 * k, rng.uniform(0.04, 0.08), 1.8), shade(below, 0.5))
        elif self.kind == "foliage":
            for z in anywhere(60):
                put(leaf(z, z + 0.2 * direction(), 0.1), shade(pick(rng, GREEN), rng.uniform(-0.3, 0.3)))
        elif self.kind == "branches":
            for z in anywhere(7):
                along, width = direction(), rng.uniform(0.02, 0.07)
                put(bar(z - along, z + along, width, 0.5), shade(wood, rng.uniform(0, 0.4)))
        elif self.kind == "stripes":
            along = direction()
            for k in range(-8, 9):
                middle = 0.5 + 0.5j + 0.11j * k * along
                put(bar(middle - along, middle + along, 0.05), shade(colour, 0.35))
        else:
            for z in anywhere(70):
                blade = bar(z.real + 1.02j, z.real + rng.uniform(-0.1, 0.1) + (0.35 + 0.6 * z.imag) * 1j, 0.03, 0.1)
                put(blade, shade(green, rng.uniform(-0.35, 0.45)))
        # Shapes and colours of birds' parts, so that a colour alone does not give a part away.
        for z in anywhere(rng.integers(5, 10)):
            colour, r, along = self._any_colour(rng), rng.uniform(0.025, 0.06), direction()
            bars = [bar(z + k * r * 1j * along, z + (3 + 1j * k) * r * along, 0.5 * r) for k in range(3)]
            for outline in pick(rng, ([disc(z, r, 1.4)], [feather(z, z + 4 * r * along, 1.4 * r)], bars)):
                put(outline, colour)
        return image.reduce(2).resize((size, size), Image.Resampling.BICUBIC)

    @staticmethod
    def _any_colour(rng):
        return pick(rng, tuple(COLOURS.values()))


def perch(seed):
    """What the bird sits on, a twig or a stone: strokes in bird coordinates."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.3:
        left, right, grey = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8), shade((150, 146, 142), rng.uniform(-0.4, 0.2))
        stone = smooth(-left + 1.3j, -left + 0.1 + 0.86j, 0.8j, right + 0.86j, right + 0.2 + 1.3j)
        return [Stroke(stone, grey), Stroke(disc(0.95j, 0.05, 3), shade(grey, 0.2), False)]
    at, tilt = rng.uniform(-1.4, 1.4), rng.uniform(-0.2, 0.2)
    twig = bar(-4 + (0.92 - tilt) * 1j, 4 + (0.92 + tilt) * 1j, rng.uniform(0.1, 0.16), 0.7)
    return [Stroke(twig, pick(rng, WOOD)), Stroke(leaf(at + 0.92j, at + 0.3 + 0.62j, 0.18), pick(rng, GREEN))]


def cover(seed):
    """A leaf or a twig in front of the bird: strokes in bird coordinates."""
    rng = np.random.default_rng(seed)
    colour, wood = pick(rng, AUTUMN), pick(rng, WOOD)
    along, middle = np.exp(2j * np.pi * rng.random()), 0.95 * np.sqrt(rng.random()) * np.exp(2j * np.pi * rng.random())
    if rng.random() < 0.4:
        leaves = [leaf(middle + k * along, middle + (k + 0.2 + 0.16j) * along, 0.13) for k in (-0.9, -0.2, 0.5)]
        return [Stroke(bar(middle - 4 * along, middle + 4 * along, 0.09), wood), *(Stroke(z, colour) for z in leaves)]
    base, tip = middle - 0.42 * along, middle + 0.42 * along
    stalk, rib = bar(base - 3 * along, base + 0.1 * along, 0.05), bar(base, tip - 0.1 * along, 0.035, 0.3)
    return [
        Stroke(stalk, shade(colour, -0.4)),
        Stroke(leaf(base, tip, 0.42), colour),
        Stroke(rib, shade(colour, -0.3), False),
    ]
