"""Re-ranking by geometry: do the parts that two photographs share lie in the same arrangement?"""

from typing import Iterable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def similarity_transform(
    here: Float[np.ndarray, "p 2"], there: Float[np.ndarray, "p 2"], weights: Float[np.ndarray, "p"] | None = None, tolerance=0.1, shrink=2.0
) -> tuple[float, complex, complex]:
    """The turn, scale and shift that most of the matched places agree on, and the weight of those that do.

    Places are complex numbers z = x + iy, and a similarity is z' = a z + b. Two matched places tell a and b; with p parts there are only
    p (p − 1) / 2 pairs, so all of them are tried, and nothing is drawn at random [the idea of Fischler and Bolles 1981, exhaustively]. The result is the sum
    of the weights of the places that agree, a and b. Fewer than two places agree on nothing, which is 0, 1, 0.

    Args:
        here, there: the places of the same parts in two photographs, in shares of the picture's sides; NaN: absent in one.
        weights: how surely each part is the same in both; 1 by default.
        tolerance: how far a place may lie from where the transform puts it.
        shrink: scales from 1 / shrink to shrink only, and turns of less than 60°: photographs are not taken upside down.
    """
    weights = np.ones(len(here)) if weights is None else np.asarray(weights, dtype=float)
    z, target = (np.asarray(places, dtype=float) @ np.array([1, 1j]) for places in (here, there))
    known = ~(np.isnan(z) | np.isnan(target)) & (weights > 0)
    z, target, weights = z[known], target[known], weights[known]
    first, second = np.triu_indices(len(z), 1)
    apart = z[second] - z[first]
    a = np.divide(target[second] - target[first], apart, out=np.zeros_like(apart), where=np.abs(apart) > 1e-9)
    plausible = (np.abs(a) >= 1 / shrink) & (np.abs(a) <= shrink) & (np.abs(np.angle(a)) < np.pi / 3)
    a, first = a[plausible], first[plausible]
    if len(a) == 0:
        return 0.0, 1 + 0j, 0j
    b = target[first] - a * z[first]
    agree = np.abs(a[:, None] * z + b[:, None] - target) <= tolerance
    votes = agree @ weights
    best = int(votes.argmax())
    return float(votes[best]), complex(a[best]), complex(b[best])


def rerank(
    orders: Iterable, places: Float[np.ndarray, "n r 2"], descriptors: Float[Tensor, "n r d"], query_places: Float[np.ndarray, "m r 2"],
    query_descriptors: Float[Tensor, "m r d"], top=20, tolerance=0.1, mutual=False,
) -> Int[np.ndarray, "m n"]:  # fmt: skip
    """Rankings whose first `top` answers are sorted anew by how much of the query agrees with theirs on one similarity.

    A match weighs max(cos, 0) of its two descriptors; ties stay in their order, and so do all later answers.

    Args:
        orders: of each query the numbers of the database, best first. places: of parts or cells, in shares of the picture's sides.
        mutual: what matches. False: part r of one photograph is part r of the other. True: each cell is matched with the one whose
            descriptor is nearest, if that one's nearest is the cell itself.
    """
    theirs, ours = normalize(descriptors, dim=2).numpy(), normalize(query_descriptors, dim=2).numpy()
    sorted_anew = []
    for order, here, own in zip(orders, query_places, ours, strict=True):
        votes = []
        for j in order[:top]:
            cosines = own @ theirs[j].T
            a, b = mutually_nearest(cosines) if mutual else (np.arange(len(own)),) * 2
            votes.append(similarity_transform(here[a], places[j][b], np.maximum(cosines[a, b], 0), tolerance)[0])
        sorted_anew.append(np.concatenate([order[:top][np.argsort(-np.array(votes), kind="stable")], order[top:]]))
    return np.stack(sorted_anew)


def mutually_nearest(cosines: Float[np.ndarray, "r s"]) -> tuple[Int[np.ndarray, "q"], Int[np.ndarray, "q"]]:
    """Rows and columns that are each other's largest."""
    there, back = cosines.argmax(1), cosines.argmax(0)
    rows = np.flatnonzero(back[there] == np.arange(len(cosines)))
    return rows, there[rows]
