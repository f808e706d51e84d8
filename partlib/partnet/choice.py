"""How many? As many as two halves of the photographs agree on most, without labels."""

from typing import Callable, Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score


def most_stable(counts: Sequence[int], fit: Callable, x, seed=0, splits=3, shown=64) -> int:
    """The count that different photographs lead to the same groups with [after Lange, Roth, Braun and Buhmann 2004].

    `fit(rows, count)` learns from these rows of x and returns what names the groups of some of x, `(m, …)` scores or numbers; two halves are
    learnt from, and their names of the same photographs compared by the adjusted Rand index.
    """
    draw, agreed = np.random.default_rng(seed), np.zeros(len(counts))
    for _ in range(splits):
        order = draw.permutation(len(x))
        some = x[np.sort(draw.permutation(len(x))[:shown])]
        for i, count in enumerate(counts):
            names = [fit(np.sort(half), count)(some) for half in np.array_split(order, 2)]
            agreed[i] += adjusted_rand_score(*((n.argmax(1) if n.ndim > 1 else n).flatten().numpy() for n in names))
    return counts[int(agreed.argmax())]
