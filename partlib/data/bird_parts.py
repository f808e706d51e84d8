"""The seven parts of a toy bird: their variants, and one drawing function each on a common skeleton.

Points are complex numbers, x + y·1j with y downwards, so that turning a part about its joint is one product.
The bird looks to the right, its body lies around 0, and it is about two units long. Nothing here is random.
"""

from functools import cache
from typing import Callable, NamedTuple

import numpy as np

COLOURS = {
    "black": (52, 48, 58), "white": (246, 240, 228), "brown": (134, 88, 58), "red": (208, 58, 50),
    "orange": (240, 136, 46), "yellow": (248, 206, 72), "green": (96, 160, 84), "teal": (56, 158, 158),
    "blue": (64, 112, 192), "violet": (136, 90, 170), "pink": (236, 148, 166),
}  # fmt: skip
JOINTS = {"body": 0j, "head": 0.26 - 0.22j, "wing": 0.22 - 0.02j, "tail": -0.50 + 0.24j}


class Stroke(NamedTuple):
    """A filled outline, with or without a dark rim."""

    points: np.ndarray
    colour: tuple
    rim: bool = True


# ---- outlines ----


def smooth(*corners):
    """A polygon whose corners are cut off three times over (Chaikin's curve)."""
    z = np.array(corners)
    for _ in range(3):
        after = np.roll(z, -1)
        z = np.stack((0.75 * z + 0.25 * after, 0.25 * z + 0.75 * after), axis=1).ravel()
    return z


def disc(centre, radius, stretch=1.0, turn=0.0):
    """A circle, or an ellipse `stretch` times as long as wide, turned by `turn` radians."""
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return centre + radius * (stretch * np.cos(t) + 1j * np.sin(t)) * np.exp(1j * turn)


def bar(start, end, width, taper=1.0):
    """A straight bar, `taper` times as wide at its end."""
    side = 0.5j * width * (end - start) / abs(end - start)
    return np.array([start - side, start + side, end + taper * side, end - taper * side])


def feather(base, tip, width):
    """Narrow at the base, broad and round at the tip."""
    along = tip - base
    side, broad = 0.5j * width * along / abs(along), base + 0.7 * along
    return smooth(
        base - 0.4 * side, base + 0.4 * side, broad + 1.2 * side, tip + 0.8 * side, tip - 0.8 * side, broad - 1.2 * side
    )


def leaf(base, tip, width):
    """Pointed at both ends."""
    along = tip - base
    side = 0.66j * width * along / abs(along)
    near, far = base + along / 4, tip - along / 3
    return region(patch((base, near + side, far + side, tip), (base, near - side, far - side, tip)))


def patch(upper, lower):
    """The area between two Bézier curves, as a function of u (along them) and v (across)."""

    def at(u, v):
        weights = ((1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3)
        return sum(w * (p * (1 - v) + q * v) for w, p, q in zip(weights, upper, lower))

    return at


def region(at, u0=0.0, u1=1.0, v0=0.0, v1=1.0):
    """The outline of a piece of a patch."""
    u = np.linspace(u0, u1, 14)
    return np.concatenate([at(u, v0), at(u[::-1], v1)])


def flat(points):
    """Complex points as x0, y0, x1, y1, …, which is what Pillow draws."""
    return np.stack((points.real, points.imag), axis=-1).ravel().tolist()


def shade(colour, by):
    """The colour made lighter (`by` > 0) or darker (`by` < 0)."""
    return tuple(round(v + (255 - v) * by if by > 0 else v * (1 + by)) for v in colour)


# ---- the parts: shape, colour → strokes, from back to front ----

TRUNK = smooth(
    0.16 - 0.40j, -0.18 - 0.26j, -0.52 + 0.04j, -0.72 + 0.26j, -0.52 + 0.42j,
    -0.12 + 0.56j, 0.34 + 0.48j, 0.64 + 0.16j, 0.62 - 0.36j,
)  # fmt: skip
HEAD = disc(0.36 - 0.42j, 0.31)


def beak(shape, colour):
    upper, lower = {
        "short": ((0.56 - 0.58j, 0.74 - 0.57j, 1.04 - 0.37j, 0.90 - 0.33j, 0.56 - 0.36j), (0.88 - 0.36j, 0.80 - 0.24j)),
        "long": ((0.56 - 0.51j, 0.72 - 0.50j, 1.36 - 0.39j, 1.36 - 0.34j, 0.56 - 0.37j), (1.22 - 0.36j, 1.20 - 0.30j)),
        "hooked": (
            (0.56 - 0.60j, 0.84 - 0.66j, 1.06 - 0.42j, 0.94 - 0.14j, 0.88 - 0.32j, 0.56 - 0.36j),
            (0.82 - 0.34j, 0.76 - 0.2j),
        ),
        "broad": (
            (0.56 - 0.52j, 0.76 - 0.48j, 1.14 - 0.52j, 1.20 - 0.36j, 1.00 - 0.36j, 0.56 - 0.36j),
            (1.02 - 0.4j, 1.12 - 0.34j, 1 - 0.27j),
        ),
    }[shape]
    return [Stroke(smooth(0.56 - 0.40j, *lower, 0.56 - 0.24j), shade(colour, -0.25)), Stroke(smooth(*upper), colour)]


def crown(shape, colour):
    top = 0.34 - 0.62j
    plume = smooth(
        0.36 - 0.72j, 0.34 - 1.02j, 0.56 - 1.20j, 0.86 - 1.12j,
        0.84 - 0.88j, 0.64 - 0.90j, 0.54 - 0.94j, 0.46 - 0.70j,
    )  # fmt: skip
    behind = {
        "capped": [],
        "crested": [smooth(0.50 - 0.66j, 0.30 - 0.90j, -0.34 - 1.00j, -0.10 - 0.74j, 0.08 - 0.54j)],
        "spiked": [feather(top, top + 0.44 * np.exp(1j * angle), 0.15) for angle in (-2.7, -2.2, -1.7, -1.2)],
        "plumed": [plume],
    }[shape]
    cap = smooth(0.68 - 0.56j, 0.60 - 0.76j, 0.34 - 0.84j, 0.08 - 0.70j, 0.02 - 0.42j, 0.20 - 0.50j, 0.42 - 0.60j)
    shine = smooth(0.52 - 0.68j, 0.34 - 0.78j, 0.16 - 0.70j, 0.34 - 0.72j)
    return [
        *(Stroke(z, shade(colour, -0.12)) for z in behind),
        Stroke(cap, colour),
        Stroke(shine, shade(colour, 0.25), False),
    ]


def eye(shape, colour):
    behind = {
        "ringed": [],
        "browed": [smooth(0.22 - 0.54j, 0.38 - 0.68j, 0.68 - 0.64j, 0.68 - 0.54j, 0.44 - 0.54j)],
        "masked": [smooth(0.04 - 0.40j, 0.30 - 0.60j, 0.62 - 0.50j, 0.62 - 0.38j, 0.36 - 0.30j)],
    }[shape]
    ball = 0.44 - 0.44j
    pupil = [
        Stroke(disc(ball, 0.078), (28, 24, 30), False),
        Stroke(disc(ball + 0.028 - 0.03j, 0.026), (255, 255, 255), False),
    ]
    return [*(Stroke(z, colour) for z in behind), Stroke(disc(ball, 0.125), colour), *pupil]


def breast(shape, colour):
    at = patch(
        (0.52 - 0.20j, 0.82 + 0.10j, 0.44 + 0.60j, -0.22 + 0.47j),
        (0.30 - 0.14j, 0.26 + 0.06j, 0.24 + 0.26j, -0.14 + 0.36j),
    )
    spots = [(0.16 + 0.14 * k, v) for k in range(5) for v in ((0.3, 0.75) if k % 2 else (0.15, 0.5))]
    marks = {
        "plain": [],
        "spotted": [disc(at(u, v), 0.036) for u, v in spots],
        "barred": [region(at, u, u + 0.06, 0.06, 0.94) for u in (0.16, 0.31, 0.46, 0.61, 0.76)],
        "bibbed": [region(at, 0.02, 0.36, 0.04, 0.96)],
    }[shape]
    return [Stroke(region(at), colour), *(Stroke(z, shade(colour, -0.55), False) for z in marks)]


def wing(shape, colour):
    at = patch(
        (0.24 - 0.10j, -0.10 - 0.30j, -0.42 - 0.02j, -0.72 + 0.22j),
        (0.24 - 0.10j, 0.26 + 0.30j, -0.20 + 0.42j, -0.72 + 0.22j),
    )
    quills = [feather(0.12j, tip, 0.15) for tip in (-0.36 + 0.42j, -0.56 + 0.38j, -0.76 + 0.30j)]
    spots = ((0.25, 0.3), (0.25, 0.7), (0.42, 0.5), (0.5, 0.2), (0.55, 0.78), (0.66, 0.45), (0.8, 0.6))
    marks = {
        "plain": [],
        "barred": [region(at, u, u + 0.09, 0.08, 0.92) for u in (0.30, 0.52, 0.74)],
        "spotted": [disc(at(u, v), 0.042) for u, v in spots],
        "tipped": [region(at, 0.62, 1.0)],
    }[shape]
    shine = Stroke(region(at, 0.12, 0.5, 0.14, 0.3), shade(colour, 0.18), False)
    return [
        *(Stroke(z, shade(colour, -0.25)) for z in quills),
        Stroke(region(at), colour),
        shine,
        *(Stroke(z, shade(colour, 0.65), False) for z in marks),
    ]


def tail(shape, colour):
    quills = {  # length, angle from the tail's axis, width
        "fan": [(0.66, a, 0.20) for a in (0.34, 0.17, 0, -0.17, -0.34)],
        "fork": [(0.82, 0.22, 0.14), (0.82, -0.22, 0.14), (0.40, 0, 0.18)],
        "ribbon": [(1.00, 0.05, 0.11), (0.94, -0.08, 0.11)],
        "stub": [(0.48, 0.26, 0.22), (0.48, -0.26, 0.22), (0.53, 0, 0.24)],
    }[shape]
    base = JOINTS["tail"] + 0.10
    quills = [(length * np.exp(1j * (2.8 + angle)), width) for length, angle, width in quills]
    return [
        *(Stroke(feather(base, base + quill, width), colour) for quill, width in quills),
        *(Stroke(disc(base + 0.88 * quill, 0.2 * width), shade(colour, 0.5), False) for quill, width in quills),
    ]


def legs(shape, colour):
    strokes = []
    for hip, foot, tone in ((-0.12 + 0.36j, -0.10 + 0.84j, -0.2), (0.12 + 0.36j, 0.16 + 0.84j, 0)):  # far, near
        skin = shade(colour, tone)
        web = [smooth(foot - 0.10 - 0.04j, foot + 0.05 - 0.09j, foot + 0.24 + 0.03j, foot - 0.06 + 0.06j)]
        toes = [bar(foot, foot + toe, 0.06, 0.7) for toe in (0.16, 0.13 + 0.07j, -0.11 + 0.02j)]
        strokes += [Stroke(z, skin) for z in (bar(hip, foot, 0.075), *(web if shape == "webbed" else toes))]
        if shape == "trousered":
            fluff = smooth(hip - 0.13, hip + 0.13, hip + 0.13 + 0.22j, hip + 0.30j, hip - 0.13 + 0.22j)
            strokes.append(Stroke(fluff, shade(skin, 0.2)))
        if shape == "banded":
            strokes += [Stroke(bar(foot - y, foot - y - 0.05j, 0.09), shade(skin, 0.75), False) for y in (0.06j, 0.17j)]
    return strokes


class Part(NamedTuple):
    """How a part is drawn, the joint that it turns about, and the words for its shapes and colours."""

    draw: Callable
    joint: str
    shapes: str
    colours: str

    @property
    def variants(self):
        """The variants' names, such as "short orange", in the order of their numbers."""
        return tuple(f"{shape} {colour}" for shape in self.shapes.split() for colour in self.colours.split())


PARTS = {
    "beak": Part(beak, "head", "short long hooked broad", "orange black yellow red"),
    "crown": Part(crown, "head", "capped crested spiked plumed", "red black yellow blue white"),
    "eye": Part(eye, "head", "ringed browed masked", "white yellow red teal"),
    "breast": Part(breast, "body", "plain spotted barred bibbed", "orange yellow white pink teal"),
    "wing": Part(wing, "wing", "plain barred spotted tipped", "blue brown green violet black"),
    "tail": Part(tail, "tail", "fan fork ribbon stub", "blue red black brown yellow"),
    "legs": Part(legs, "body", "slim trousered banded webbed", "orange pink black yellow"),
}


@cache
def part_strokes(name, variant):
    """The strokes of one variant of one part."""
    shape, colour = PARTS[name].variants[variant].split()
    return PARTS[name].draw(shape, COLOURS[colour])
