"""Colours as an eye orders them: the Lab space, its colours on a grid, and how a guess among many colours becomes one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GRID = 10  # from one bin to the next, in a and in b

# sRGB → XYZ under the white of daylight D65 [IEC 61966-2-1], XYZ → Lab [CIE 1976].
TO_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], dtype=torch.float64)
WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
TO_LAB = torch.tensor([[0.0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64)
CORNER = 6 / 29  # below its cube, the cube root is a straight line


def rgb_to_lab(rgb: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """sRGB from 0 to 1 → lightness L from 0 to 100, a (green to red) and b (blue to yellow), about −110 to 110."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    xyz = _mixed(TO_XYZ / WHITE[:, None], linear)
    root = torch.where(xyz > CORNER**3, xyz.clamp(min=CORNER**3) ** (1 / 3), xyz / (3 * CORNER**2) + 4 / 29)
    return _mixed(TO_LAB, root) - torch.tensor([16.0, 0, 0]).to(rgb)[:, None, None]


def lab_to_rgb(lab: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The way back; colours that no screen shows are cut off at 0 and 1."""
    root = _mixed(torch.linalg.inv(TO_LAB), lab + torch.tensor([16.0, 0, 0]).to(lab)[:, None, None])
    xyz = torch.where(root > CORNER, root**3, 3 * CORNER**2 * (root - 4 / 29))
    linear = _mixed(torch.linalg.inv(TO_XYZ / WHITE[:, None]), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)


def _mixed(matrix, colours):
    return torch.einsum("ij,njhw->nihw", matrix.to(colours), colours)


def bins() -> Float[Tensor, "q 2"]:
    """The points (a, b) of a grid of 10 that some sRGB colour is nearest to: 261.

    For each (a, b) the colours that have it lie on a line, which leaves the cube of colours through its faces: so the six faces, of all 8-bit
    values, are enough to look at.
    """
    levels = torch.arange(256) / 255
    first, second = torch.meshgrid(levels, levels, indexing="ij")
    faces = [torch.stack([first, second, torch.full_like(first, end)]).roll(axis, 0) for axis in range(3) for end in (0.0, 1.0)]
    return (rgb_to_lab(torch.stack(faces).double())[:, 1:] / GRID).round().permute(0, 2, 3, 1).reshape(-1, 2).unique(dim=0).float() * GRID


def soft(ab: Float[Tensor, "m 2"], centres: Float[Tensor, "q 2"], neighbours=5, spread=5.0) -> Float[Tensor, "m q"]:
    """Z: a colour as shares of its five nearest bins, by a Gaussian of σ = 5; they sum to 1 [Zhang et al. 2016, section 2.2]."""
    distance, nearest = torch.cdist(ab, centres).topk(neighbours, dim=1, largest=False)
    return torch.zeros(len(ab), len(centres)).to(ab).scatter(1, nearest, torch.softmax(-(distance**2) / (2 * spread**2), dim=1))


def rebalanced(share: Float[Tensor, "q"], mixed=0.5) -> Float[Tensor, "q"]:
    """w ∝ 1 / ((1 − λ) p + λ / Q): rare colours weigh more; their mean over the photographs is 1, Σ p w = 1 [section 2.2]."""
    weight = 1 / ((1 - mixed) * share + mixed / len(share))
    return weight / (share @ weight)


def annealed_mean(logits: Float[Tensor, "n q h w"], centres: Float[Tensor, "q 2"], temperature=0.38) -> Float[Tensor, "n 2 h w"]:
    """The mean colour after probabilities are made decided: 1 leaves them as they are (pale), towards 0 the mode is taken [section 2.3]."""
    return torch.einsum("nqhw,qc->nchw", torch.softmax(logits / temperature, dim=1), centres)


def nearest_bin(ab: Float[Tensor, "m 2"], centres: Float[Tensor, "q 2"]) -> Int[Tensor, "m"]:
    """The number of each colour's bin."""
    return torch.cdist(ab, centres).argmin(1)
