"""Jointly learned parts: part filters and the weights of groups on them, trained together, weights of both signs."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from .._progress import progress
from ..regions import Regions
from .parts import Parts, made_by
from .world import World, bag, check_groups

DECAY = 1e-2  # λ of both penalties, on filters and on weights


@dataclass
class JointParts:
    """Parts learnt together with what they decide [Parizi, Vedaldi, Zisserman and Felzenszwalb 2015, in outline].

    O(w, V) = λ ‖w‖² + λ ‖V‖² + mean_i max_y { [y ≠ y_i] + ⟨V_y − V_{y_i}, b(x_i)⟩ },    b_j(x) = max_r ⟨w_j, x_r⟩:

    group y's score is V b, without bias; V_yj < 0 makes j a negative part of y. It starts from a random pool of LDA filters,
    out of which a group-sparse V selects.

    Args:
        parts: p, for all groups together. pool: filters to select from.
        how: "alternating": V by a convex SVM, then w by a convex bound of O, in turns, as published; "gradient": both by
            gradient descent on O.
        rounds: turns of the alternation; the gradient takes as many steps in all.
        dims: directions in which the world is described. seed: of the pool.
    """

    parts: int = 64
    pool: int = 512
    how: str = "alternating"
    rounds: int = 4
    dims: int = 128
    seed: int = 0

    def fit(self, regions: Regions, groups) -> Parts:
        """From groups `(n,)`. The parts carry V as `weights`, and O after each round in `about["objective"]`."""
        if self.how not in ("alternating", "gradient"):
            raise ValueError(f"how={self.how!r}: joint parts are trained 'alternating' or by 'gradient'")
        groups = np.unique(check_groups(groups, regions), return_inverse=True)[1]
        world = World.of(regions, self.dims, self.seed)
        x, y = world.describe(regions), torch.from_numpy(groups)
        filters = normalize(world.whitening.transform(regions.sample(self.pool, self.seed)), dim=1)
        filters = filters[select(bag(x, filters), y, min(self.parts, len(filters)))]
        weights = svm(bag(x, filters), y)
        objective = [loss(filters, weights, x, y)]
        for _ in progress(range(self.rounds), desc="joint parts", unit="round", leave=False):
            if self.how == "gradient":
                filters, weights = descend(lambda w, v: objective_of(bag(x, w), w, v, y), [filters, weights])
            else:
                filters = improve_filters(filters, weights, x, y)
                weights = min(weights, svm(bag(x, filters), y), key=lambda v: loss(filters, v, x, y))
            objective.append(loss(filters, weights, x, y))
        folded, offsets = world.whitening.fold(filters)
        return Parts(folded, offsets, about=made_by(self, regions) | {"objective": objective}, weights=weights)


def hinge(scores: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """mean_i max_y { [y ≠ y_i] + s_iy − s_iy_i }."""
    margin = 1 - one_hot(y, scores.shape[1]) + scores
    return (margin.amax(1) - scores.gather(1, y[:, None])[:, 0]).mean()


def objective_of(bags, filters, weights, y):
    """O, of bags made with these filters."""
    return DECAY * (filters.square().sum() + weights.square().sum()) + hinge(bags @ weights.T, y)


def loss(filters, weights, x, y) -> float:
    """O(w, V)."""
    return objective_of(bag(x, filters), filters, weights, y).item()


def select(bags: Float[Tensor, "n q"], y: Int[Tensor, "n"], count: int, penalty=0.02, steps=200) -> Int[Tensor, "count"]:
    """Group-sparse selection: the filters whose column of V is longest under hinge + penalty Σ_j ‖V_:j‖₂ (proximal descent)."""
    bags = bags - bags.mean(0)
    weights = torch.zeros(int(y.max()) + 1, bags.shape[1], requires_grad=True)
    for step in range(steps):
        (slope,) = torch.autograd.grad(hinge(bags @ weights.T, y), weights)
        rate = 0.1 / (1 + step / 20)
        with torch.no_grad():
            moved = weights - rate * slope
            length = moved.norm(dim=0).clamp(min=1e-12)
            weights = (moved * (1 - rate * penalty / length).clamp(min=0)).requires_grad_()
    return weights.detach().norm(dim=0).argsort(descending=True, stable=True)[:count]


def svm(bags: Float[Tensor, "n p"], y: Int[Tensor, "n"]) -> Float[Tensor, "c p"]:
    """V of least O for fixed filters: a multi-class SVM without bias, by liblinear."""
    # liblinear's loss is ½ ‖V‖² + C Σ_i hinge_i; ours is λ ‖V‖² + (1/n) Σ_i hinge_i.
    cost = 1 / (2 * DECAY * len(bags))
    machine = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=cost, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: V is kept only where O is lower
        machine.fit(bags.numpy(), y.numpy())
    weights = torch.from_numpy(machine.coef_).float()
    # Of two groups scikit-learn keeps V_1 − V_0 alone; the shortest V of this difference is opposite halves.
    return torch.cat([-weights, weights]) / 2 if len(weights) == 1 else weights


def improve_filters(filters, weights, x, y):
    """Filters of lower O for fixed V: gradient steps on a convex bound of O.

    A term with V_yj − V_{y_i}j ≥ 0 is convex in w_j, a maximum over regions. Where it is negative, the region is held at
    the one that is best now: minus a maximum is at most minus any one of its entries, so O is bounded from above, and touched.
    """
    where = torch.einsum("nrd,pd->npr", x, filters).argmax(2)
    held = x[torch.arange(len(x))[:, None], where]
    gap = weights[None] - weights[y][:, None]
    margin = 1 - one_hot(y, len(weights))

    def bound(w):
        free, fixed = bag(x, w), torch.einsum("npd,pd->np", held, w)
        terms = torch.einsum("ncp,np->nc", gap.clamp(min=0), free) + torch.einsum("ncp,np->nc", gap.clamp(max=0), fixed)
        return DECAY * w.square().sum() + (margin + terms).amax(1).mean()

    return descend(bound, [filters])[0]


def descend(function, start, steps=25, rate=0.01):
    """The best of some steps of Adam on a function of tensors."""
    values = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.Adam(values, lr=rate)
    best, lowest = start, float("inf")
    for _ in range(steps + 1):
        height = function(*values)
        if height.item() < lowest:
            best, lowest = [value.detach().clone() for value in values], height.item()
        optimizer.zero_grad()
        height.backward()
        optimizer.step()
    return best
