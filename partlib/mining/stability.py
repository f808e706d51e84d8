"""How many parts, how many groups? What two halves of the photographs agree on, without labels."""

import numpy as np
from sklearn.metrics import adjusted_rand_score

from ..regions import Regions


def stability(learner, regions: Regions, splits=3, photographs=64, seed=0) -> float:
    """How far halves of the photographs teach the same parts, in percent: 100 the same, 0 no more than by chance.

    The learner is fitted on either half, and both fits name the part of each region of some photographs; the agreement is
    the adjusted Rand index, averaged over splits. Settings are chosen by it without labels:
    `max(learners, key=lambda learner: stability(learner, regions))` [after Lange, Roth, Braun and Buhmann 2004].

    Args:
        learner: whatever has `fit(regions)`. splits: in halves, drawn from `seed`.
        photographs: whose regions are named, at most.
    """
    draw, found = np.random.default_rng(seed), []
    for _ in range(splits):
        order = draw.permutation(len(regions))
        halves = np.array_split(order, 2)
        shown = regions[draw.permutation(len(regions))[:photographs]]
        names = [learner.fit(regions[np.sort(half)]).score(shown).argmax(1).flatten().numpy() for half in halves]
        found.append(adjusted_rand_score(*names))
    return 100 * float(np.mean(found))
