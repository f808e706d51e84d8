"""Regions to parts, as an assignment problem: in every photograph each part takes one region, and no region serves two.

M[i, p, r] says how far region r of photograph i is part p. What is maximised is how alike the regions of a part are,

    J(M) = Σ_p n_p ‖m_p‖²,    m_p = (1/n_p) Σ_ir M[i, p, r] x_ir,    n_p = Σ_ir M[i, p, r],

for descriptors x that are centred and whitened: then m_p is also the LDA filter of the part, S = m_p · x its scores, and
J = Σ M S [Sicre, Rabin, Avrithis, Furon, Jurie and Kijak 2016; known to us in outline, the formulas are worked out from
it]. The problem is quadratic in M. It is never written as a matrix of regions by regions: filters first, then scores.

Four solvers improve M from starting filters, by turns of filters and of one of two projections of their scores:
`assignment` (hard, Hungarian) or `sinkhorn` (soft). A part need not be in every photograph: a presence prior π < 1 lets
it be absent from the share 1 − π of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize, softplus

_SAFE = 30  # potentials may move by this much before a plan is formed anew: e³⁰ squared is still far within float32
_SCALINGS = 5  # Sinkhorn's iterations inside a solver's step, which starts from the potentials of the step before


@dataclass(frozen=True)
class Matching:
    """What a solver found.

    Args:
        weights: M `(n, p, r)`, zeros and ones: at most one region a part and photograph, at most one part a region.
        filters: m_p `(p, d)`, the mean descriptor of each part's regions.
        objective: J after each step; the last entry is that of `weights`.
        converged: whether M had stopped changing (a soft M: by more than 0.001) before the steps were used up.
    """

    weights: Float[Tensor, "n p r"]
    filters: Float[Tensor, "p d"]
    objective: list[float]
    converged: bool


# The two projections: scores in, a matching out.


def assignment(scores: Float[Tensor, "n p r"], presence=1.0, mask: Bool[Tensor, "n r"] | None = None) -> Float[Tensor, "n p r"]:
    """The matching of the highest total score, photograph by photograph (Kuhn's Hungarian method, by scipy).

    With a presence prior, each part then keeps the π n photographs where it scores highest (rounded up).

    Args:
        scores: finite; equal ones are matched in some order, always the same.
        presence: π, 0 < π ≤ 1, one number or one for each part `(p,)`.
        mask: false on regions that no part may take.

    Raises:
        ValueError: scores that are not finite, or fewer regions than parts in some photograph.
    """
    presence, mask = _checked(scores, presence, mask)
    # Minus infinity makes a photograph impossible to scipy; a sum of allowed scores always beats one with this in it.
    worth, blocked = scores.detach().double().cpu(), ~mask[:, None].cpu()
    worth = worth.masked_fill(blocked, -(1 + 4 * scores.shape[1] * float(worth.masked_fill(blocked, 0).abs().max())))
    matching, found = torch.zeros_like(worth), torch.zeros(worth.shape[:2], dtype=worth.dtype)
    for i, table in enumerate(worth.numpy()):
        parts, regions = linear_sum_assignment(table, maximize=True)
        matching[i, parts, regions] = 1
        found[i, parts] = worth[i, parts, regions]
    kept = torch.ceil(presence * len(scores) - 1e-6).cpu()
    rank = found.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    return (matching * (rank < kept)[:, :, None]).to(scores)


def sinkhorn(scores: Float[Tensor, "n p r"], presence=1.0, mask: Bool[Tensor, "n r"] | None = None, iterations=100) -> Float[Tensor, "n p r"]:
    """The soft matching of scores: exp(scores), scaled until every part sums to 1 and no region gives more than 1.

    A slack row takes what a region has left over; each part has a bin for its absence, which gets 1 − π of it on average
    over the photographs, most where its scores are low. Large scores do no harm. A part with its bin sums to 1
    exactly, a region's sum tends to at most 1 [Sinkhorn and Knopp 1967; with slack, Gold and Rangarajan 1996].

    Args:
        scores: β S; the larger β, the harder the matching. presence, mask: as in `assignment`; it raises the same errors.
    """
    presence, mask = _checked(scores, presence, mask)
    return _sinkhorn(scores.masked_fill(~mask[:, None], -torch.inf), presence, iterations)[0]


def _sinkhorn(scores, presence, iterations, potentials=None):
    """The plan exp(scores + part + region), and potentials to start from when the scores are nearly these.

    Only the first plan is formed from the scores. From there the potentials move by log u and log v, and an iteration is two
    products of that plan with a vector. One that would leave what numbers can hold is made in logarithms instead, and the
    plan is formed anew [Schmitzer 2019].
    """
    everywhere = torch.log((1 - presence) * len(scores))
    region, absent = potentials or (scores.new_zeros(len(scores), 1, scores.shape[2]), torch.log(1 - presence))
    part, plan, turned, u, v = _scaled(scores, region, absent)
    for _ in range(iterations):
        moved = part + u.log()
        absent = everywhere - torch.logsumexp(moved, 0)
        # exp(region) = 1 / (1 + Σ_p exp(scores + part)), with the slack row's 1; exp(part) = 1 / (exp(absent) + Σ_r …).
        v = 1 / (region.exp() + u @ plan)
        u = 1 / (v @ turned + torch.exp(absent + part))
        if not torch.cat([u, v], 2).log().abs().max() < _SAFE:  # NaN is not safe either
            region = -softplus(torch.logsumexp(scores + moved.mT, 1, keepdim=True))
            part, plan, turned, u, v = _scaled(scores, region, absent)
    return plan * u.mT * v, (region + v.log(), absent)


def _scaled(scores, region, absent):
    """Potentials `(n, 1, p)` by which each part sums to 1 with its bin, the plan they make, and scalings u, v to go on from.

    The plan comes `(n, p, r)` and turned `(n, r, p)`: a vector times a matrix is fast where the rows lie together.
    """
    part = -torch.logaddexp(torch.logsumexp(scores + region, 2)[:, None], absent)
    plan = torch.exp(scores + part.mT + region)
    return part, plan, plan.mT.contiguous(), torch.ones_like(part), torch.ones_like(region)


# The solvers: descriptors and starting filters in, a Matching out.


def hungarian(x: Float[Tensor, "n r d"], filters: Float[Tensor, "p d"], presence=1.0, mask=None, steps=40) -> Matching:
    """Alternation: scores of the filters, their best assignment, filters of the assigned regions, until nothing changes.

    J is convex in M, so while no part may be absent it never falls; it stops in the nearest local maximum.

    Args:
        x: centred and whitened descriptors; filters: to start from. presence, mask: as in `assignment`.
    """
    problem = _Problem(x, filters, presence, mask)
    weights, objective = None, []
    for _ in range(steps):
        before, weights = weights, problem.assign(problem.scores())
        objective.append(problem.update(weights))
        if before is not None and torch.equal(before, weights):
            return Matching(weights, problem.filters, objective, True)
    return Matching(weights, problem.filters, objective, False)


def soft_assign(x: Float[Tensor, "n r d"], filters: Float[Tensor, "p d"], presence=1.0, mask=None, steps=40, start=0.5, growth=1.1) -> Matching:
    """Iterative soft-assign: M = sinkhorn(β S), filters of M, β a little higher, at the end an assignment.

    Soft at first, every region has a say in every part, so that a part is not caught by what it started from. At
    β = 1 / (variance of x) the even matching stops being stable: parts form just above that, and annealing begins just
    below [Gold and Rangarajan 1996; the schedule is ours].

    Args:
        x: centred and whitened descriptors; filters: to start from. presence, mask: as in `assignment`.
        start: the first β, as a multiple of 1 / (variance of x). growth: β is multiplied by it after each step.
    """
    problem = _Problem(x, filters, presence, mask)
    beta = start / problem.variance
    weights, objective, converged = None, [], False
    for _ in range(steps):
        before, weights = weights, problem.soften(beta * problem.scores())
        objective.append(problem.update(weights))
        converged = _settled(before, weights)
        beta *= growth
    return problem.harden(objective, converged)


def gradient_soft_assign(x: Float[Tensor, "n r d"], filters: Float[Tensor, "p d"], presence=1.0, mask=None, steps=40, rate=0.1) -> Matching:
    """Mirror ascent: log M ← log M + η ∇J with ∇J = 2 S, projected by Sinkhorn, at the end an assignment.

    Each step adds to what the steps before it said, so M hardens by itself, without a schedule. Of the published gradient
    variant only the name is known to us: with centred descriptors, projecting exp(β ∇J) would be `soft_assign` at 2 β.

    Args:
        x: centred and whitened descriptors; filters: to start from. presence, mask: as in `assignment`.
        rate: η, as a multiple of 1 / (variance of x).
    """
    problem = _Problem(x, filters, presence, mask)
    eta = rate / problem.variance
    scores, weights, objective, converged = problem.scores(), None, [], False
    logits = torch.zeros_like(scores)
    for _ in range(steps):
        logits = logits + eta * 2 * scores
        before, weights = weights, problem.soften(logits)
        objective.append(problem.update(weights))
        converged = _settled(before, weights)
        scores = problem.scores()
    return problem.harden(objective, converged)


def frank_wolfe(x: Float[Tensor, "n r d"], filters: Float[Tensor, "p d"], presence=1.0, mask=None, steps=40) -> Matching:
    """Integer projected fixed point: towards the best assignment of the gradient, as far as pays [Leordeanu et al. 2009].

    J is convex, so a line search on it would always go all the way: Hungarian alternation. Where M is an assignment,
    M² = M, so J + Σ M (1 − M) ‖x‖² / n_p is the same there; between assignments it is not convex (no region votes for
    itself), and the exact step of this quadratic may stop in between. The best assignment met is returned.

    Args:
        x: centred and whitened descriptors; filters: to start from. presence, mask: as in `assignment`.
    """
    problem = _Problem(x, filters, presence, mask)
    weights = problem.assign(problem.scores())
    best, objective = weights, [problem.update(weights)]
    vote = problem.x.square().sum(2)[:, None] / problem.mass[:, None]  # ‖x‖² / n_p, what a region adds to its own score
    converged = False
    for _ in range(steps):
        gradient = 2 * problem.scores() + (1 - 2 * weights) * vote
        target = problem.assign(gradient)
        change = target - weights
        slope = float((gradient * change).sum())
        moved = torch.einsum("npr,nrd->pd", change, problem.x)
        bend = float((moved.square().sum(1) / problem.mass).sum() - (change.square() * vote).sum())
        if converged := slope <= 1e-6 * abs(objective[0]):
            break
        weights = weights + (1.0 if slope + 2 * bend >= 0 else -slope / (2 * bend)) * change
        objective.append(problem.update(weights))
        best = max(best, target, key=problem.objective)
    found = max(best, problem.assign(problem.scores()), key=problem.objective)
    return Matching(found, problem.filters_of(found), [*objective, problem.objective(found)], converged)


def from_random(solver, x: Float[Tensor, "n r d"], parts: int, candidates=3, seed=0, worth=None, mask=None, **options) -> Matching:
    """A solver's matching from a random start: many candidates, the best distinct ones, and these once more.

    Each of `candidates` × `parts` filters starts as the mean of one random region of every photograph. Of what the solver
    makes of them, the `parts` worthiest are kept of which no two are alike, and solved for again. With as many
    candidates as parts, two often share a part's regions between them, and another part goes without.

    Args:
        solver: `soft_assign` or another of this module; `options` go to it.
        candidates: at most r / parts of them fit. mask: as in `assignment`.
        worth: filters `(q, d)` → how good each is `(q,)`; their length by default, which is what J adds up.
    """
    n, r, d = x.shape
    _, mask = _checked(x.new_zeros(n, parts, r), 1.0, mask)
    count = min(candidates * parts, int(mask.sum(1).min()))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, r, generator=generator).masked_fill(~mask.cpu(), 2).argsort(1)[:, :count].to(x.device)
    found = solver(x, x.gather(1, drawn[:, :, None].expand(-1, -1, d)).mean(0), mask=mask, **options)
    good = found.filters.norm(dim=1) if worth is None else worth(found.filters)
    return solver(x, found.filters[distinct(found.filters, good, parts)], mask=mask, **options)


def distinct(filters: Float[Tensor, "q d"], worth: Float[Tensor, "q"], count: int, alike=0.5) -> Int[Tensor, "p"]:
    """Which filters to keep: the worthiest first, none with a cosine over `alike` to one before; if that leaves fewer
    than `count`, the worthiest of the others after them."""
    cosines = normalize(filters, dim=1) @ normalize(filters, dim=1).T
    order, kept = worth.argsort(dim=0, descending=True, stable=True).tolist(), []
    for i in order:
        if len(kept) < count and not (cosines[i, kept] > alike).any():
            kept.append(i)
    kept += [i for i in order if i not in kept][: count - len(kept)]
    return torch.tensor(kept, device=filters.device)


# A problem whose answer is known.


def planted(n=60, r=40, d=32, parts=6, presence=1.0, strength=3.25, spread=0.2, seed=0) -> tuple[Float[Tensor, "n r d"], Float[Tensor, "n p r"]]:
    """Descriptors with hidden parts, and the matching to be found.

    Clutter is N(0, I). Part p sits in one random region of each photograph where it is present, as `strength` times one
    of `parts` orthogonal directions, with noise of standard deviation `spread`. The whole is centred.
    """
    generator = torch.Generator().manual_seed(seed)
    means = strength * torch.linalg.qr(torch.randn(d, parts, generator=generator))[0].T
    x = torch.randn(n, r, d, generator=generator)
    at = torch.rand(n, r, generator=generator).argsort(1)[:, :parts]
    there = torch.rand(n, parts, generator=generator) < presence
    truth = torch.zeros(n, parts, r).scatter_(2, at[:, :, None], there[:, :, None].float())
    hidden = truth.sum(1).bool()
    x[hidden] = torch.einsum("npr,pd->nrd", truth, means)[hidden] + spread * torch.randn(int(hidden.sum()), d, generator=generator)
    return x - x.mean((0, 1)), truth


def recovered(weights: Float[Tensor, "n p r"], truth: Float[Tensor, "n q r"]) -> float:
    """The share of a planted matching that was found, parts paired one to one as suits best: 2 × common / (found + planted)."""
    common = torch.einsum("npr,nqr->pq", weights, truth.to(weights)).cpu().numpy()
    return 2 * float(common[linear_sum_assignment(common, maximize=True)].sum()) / float(weights.sum() + truth.sum())


# What the solvers share.


class _Problem:
    """Descriptors, the filters of the moment, and the projections under this problem's presence and mask."""

    def __init__(self, x, filters, presence, mask):
        if x.ndim != 3 or filters.ndim != 2 or filters.shape[1] != x.shape[2]:
            raise ValueError(f"expected descriptors (n, r, d) and filters (p, d), not {tuple(x.shape)} and {tuple(filters.shape)}")
        self.x, self.filters, self._potentials = x, filters, None
        self.presence, self.mask = _checked(self.scores(), presence, mask)
        self.variance = float(x[self.mask].square().mean())
        if self.variance == 0:
            raise ValueError("all regions are the same, so no part can be told from another: are the maps constant?")
        self.x = x.masked_fill(~self.mask[:, :, None], 0)  # a weight of 0 does not silence a NaN
        self.mass = torch.ceil(self.presence * len(x) - 1e-6)  # n_p of an assignment

    def scores(self):
        return torch.einsum("nrd,pd->npr", self.x, self.filters)

    def filters_of(self, weights):
        return torch.einsum("npr,nrd->pd", weights, self.x) / self.mass[:, None]

    def objective(self, weights):
        return float((self.mass * self.filters_of(weights).square().sum(1)).sum())

    def update(self, weights):
        """Take the filters of M, and tell J(M)."""
        self.filters = self.filters_of(weights)
        return self.objective(weights)

    def assign(self, scores):
        return assignment(scores, self.presence, self.mask)

    def soften(self, scores):
        blocked = scores.masked_fill(~self.mask[:, None], -torch.inf)
        weights, self._potentials = _sinkhorn(blocked, self.presence, _SCALINGS, self._potentials)
        return weights

    def harden(self, objective, converged):
        weights = self.assign(self.scores())
        return Matching(weights, self.filters_of(weights), [*objective, self.objective(weights)], converged)


def _settled(before, weights):
    return before is not None and bool((weights - before).abs().max() < 1e-3)


def _checked(scores, presence, mask):
    """Presence as `(p,)` and the mask as `(n, r)`, on the scores' device."""
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"expected scores (n, p, r) of some photographs, parts and regions, not {tuple(scores.shape)}")
    n, parts, regions = scores.shape
    mask = torch.ones(n, regions, dtype=torch.bool, device=scores.device) if mask is None else torch.as_tensor(mask, device=scores.device)
    if mask.shape != (n, regions) or mask.dtype != torch.bool:
        raise ValueError(f"expected a mask of truth values ({n}, {regions}), one a region, not {mask.dtype} {tuple(mask.shape)}")
    if not torch.isfinite(scores.masked_fill(~mask[:, None], 0)).all():
        raise ValueError("some scores are NaN or infinite, so nothing can be matched: mask those regions, or mend the descriptors")
    fewest = int(mask.sum(1).min())
    if fewest < parts:
        raise ValueError(f"{parts} parts, but a photograph with {fewest} regions to give them: ask for fewer parts, or take more regions")
    presence = torch.as_tensor(presence, dtype=scores.dtype, device=scores.device)
    if presence.shape not in ((), (parts,)) or not ((presence > 0) & (presence <= 1)).all():
        raise ValueError(f"expected a presence over 0 and at most 1, one number or {parts}, not {presence.tolist()}")
    return presence.expand(parts), mask
