"""Protocols of retrieval whose truth is given as lists: Oxford and Paris, and their revisited easy, medium and hard."""

from typing import Iterable, Sequence

import numpy as np

from .measures import average_precision, relevance

DIFFICULTIES = {"E": ("easy",), "M": ("easy", "hard"), "H": ("hard",)}  # of what is right; the rest of easy and hard is junk


def judge(orders: Iterable, right: Sequence, junk: Sequence | None = None, ks=(1, 5, 10), variant="trapezoid") -> dict[str, float]:
    """mAP and mP@k in percent of rankings against lists, one list a query: the protocol of Oxford5k and Paris6k [Philbin et al. 2007].

    Junk is taken out of a ranking before it is judged. Queries without any right answer do not count; `queries` says how many did.
    Precision@k is that of the first min(k, rank of the last right answer), as in the code that Radenović et al. (2018) published
    with the revisited protocol.

    Args:
        orders: of each query the numbers of the whole database, best first (`rankings` gives them).
        right, junk: of each query, numbers of the database. variant: of `average_precision`; these protocols take the trapezoid.
    """
    aps, precisions = [], {k: [] for k in ks}
    junk = [()] * len(right) if junk is None else junk
    for order, good, ignored in zip(orders, right, junk, strict=True):
        relevant = relevance(order, good, ignored)
        found, wanted = np.flatnonzero(relevant), np.setdiff1d(good, ignored)
        if len(found) != len(wanted):
            raise ValueError(f"a ranking holds {len(found)} of the {len(wanted)} right answers of its query: rank the whole database")
        if len(wanted) == 0:
            continue
        aps.append(average_precision(relevant, variant))
        for k in ks:
            precisions[k].append(relevant[: min(k, found[-1] + 1)].mean())
    if not aps:
        raise ValueError("no query has any right answer: are these lists of this database?")
    mean = lambda values: 100 * float(np.mean(values))
    return {"mAP": mean(aps)} | {f"mP@{k}": mean(values) for k, values in precisions.items()} | {"queries": len(aps)}


def revisited(orders: Sequence, easy: Sequence, hard: Sequence, junk: Sequence, ks=(1, 5, 10), variant="trapezoid") -> dict[str, dict]:
    """`judge` at the three difficulties of Revisited Oxford and Paris [Radenović et al. 2018]: "E", "M" and "H".

    Easy: the easy answers are right, the hard ones junk. Medium: both are right. Hard: the hard ones are right, the easy ones junk.

    Args:
        orders: of each query the numbers of the whole database, best first.
        easy, hard, junk: of each query, numbers of the database.
    """
    given, found = {"easy": easy, "hard": hard}, {}
    join = lambda lists: [np.concatenate([np.asarray(one, dtype=int) for one in own]) for own in zip(*lists, strict=True)]
    for name, counted in DIFFICULTIES.items():
        right = join([given[what] for what in counted])
        ignored = join([junk, *(lists for what, lists in given.items() if what not in counted)])
        found[name] = judge(orders, right, ignored, ks, variant)
    return found
