"""Regions to parts: the projections agree with scipy, POT and written-out loops; the solvers climb J and find planted parts."""

from itertools import permutations
from statistics import median

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from partlib import matching
from partlib.matching import assignment, distinct, frank_wolfe, from_random, gradient_soft_assign, hungarian, planted, recovered, sinkhorn, soft_assign

SOLVERS = [hungarian, soft_assign, gradient_soft_assign, frank_wolfe]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_scores(n=4, p=3, r=7, scale=1.0, seed=0):
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=(n, p, r)))


def random_mask(n, p, r, seed=0):
    """At least p regions of every photograph allowed."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((n, r), dtype=bool)
    for row in mask:
        row[draw.permutation(r)[: draw.integers(p, r + 1)]] = True
    return torch.from_numpy(mask)


def problem(n=12, r=9, d=6, parts=3, seed=0):
    """Centred descriptors without any structure, and filters to start from, in float64."""
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(draw.normal(size=(n, r, d)))
    x = x - x.mean((0, 1))
    return x, x[:, :parts].mean(0)


def objective(weights, x):
    """J from its definition: every pair of regions that are the same part, over the part's size."""
    total, (n, parts, r) = 0.0, weights.shape
    for p in range(parts):
        pairs = ((i, s, j, t) for i in range(n) for s in range(r) for j in range(n) for t in range(r))
        alike = sum(float(weights[i, p, s] * weights[j, p, t]) * float(x[i, s] @ x[j, t]) for i, s, j, t in pairs if weights[i, p, s] and weights[j, p, t])
        total += alike / float(weights[:, p].sum())
    return total


def is_matching(weights):
    return bool(((weights == 0) | (weights == 1)).all()) and weights.sum(2).max() <= 1 and weights.sum(1).max() <= 1


# ---- the assignment ----

sizes = {"n": st.integers(1, 5), "p": st.integers(1, 4), "more": st.integers(0, 4), "seed": st.integers(0, 999)}


@given(**sizes, ties=st.booleans(), masked=st.booleans(), shift=st.sampled_from([-1e6, 0.0, 50.0]))
def test_assignment_is_that_of_scipy_in_every_photograph(n, p, more, seed, ties, masked, shift):
    scores = random_scores(n, p, p + more, 2, seed) + shift
    scores = scores.round() if ties else scores
    mask = random_mask(n, p, p + more, seed) if masked else None
    found = assignment(scores, mask=mask)
    assert is_matching(found) and (found.sum(2) == 1).all() and found.dtype == scores.dtype
    for i, table in enumerate(scores.numpy()):
        allowed = np.arange(p + more) if mask is None else np.flatnonzero(mask[i])
        rows, columns = linear_sum_assignment(table[:, allowed], maximize=True)
        assert (found[i].numpy() * table).sum() == pytest.approx(table[:, allowed][rows, columns].sum(), rel=1e-12)
        assert mask is None or not found[i][:, ~mask[i]].any()
        if not ties:
            assert (found[i].argmax(1).numpy()[rows] == allowed[columns]).all()
    assert torch.equal(found, assignment(scores, mask=mask))


@given(n=st.integers(1, 9), share=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]), seed=st.integers(0, 99))
def test_a_part_keeps_the_photographs_where_it_scores_highest(n, share, seed):
    scores = random_scores(n, 2, 5, seed=seed)
    everywhere, kept = assignment(scores), assignment(scores, presence=torch.tensor([share, 1.0]))
    assert torch.equal(kept[:, 1], everywhere[:, 1])
    best = (scores * everywhere).sum(2)[:, 0]
    count = -(-round(10 * share) * n // 10)  # π n in whole numbers, rounded up
    expected = set(sorted(range(n), key=lambda i: -best[i])[:count])
    assert {i for i in range(n) if kept[i, 0].any()} == expected
    assert all(torch.equal(kept[i, 0], everywhere[i, 0]) for i in expected)


# ---- Sinkhorn ----


@given(n=st.integers(1, 3), p=st.integers(1, 4), more=st.integers(1, 4), scale=st.sampled_from([0.1, 1.0, 3.0]), seed=st.integers(0, 999), masked=st.booleans())
@settings(max_examples=25)
def test_sinkhorn_is_that_of_pot_with_a_slack_row(n, p, more, scale, seed, masked):
    scores = random_scores(n, p, p + more, scale, seed)
    mask = random_mask(n, p + 1, p + more, seed) if masked else torch.ones(n, p + more, dtype=torch.bool)
    found = sinkhorn(scores, mask=mask, iterations=3000)
    for i in range(n):
        table = scores[i][:, mask[i]].numpy()
        free = table.shape[1]
        costs, mass = np.vstack([-table, np.zeros(free)]), np.append(np.ones(p), free - p)
        plan = ot.bregman.sinkhorn_log(mass, np.ones(free), costs, 1.0, numItermax=20_000, stopThr=1e-10)
        np.testing.assert_allclose(found[i][:, mask[i]], plan[:p], atol=1e-6)
        assert not found[i][:, ~mask[i]].any()


def written_out(scores, presence, rounds):
    """Plain scaling with a slack row and a bin for each part, number by number."""
    n, p, r = scores.shape
    kernel = np.exp(scores.numpy())
    region, absent, part = np.ones((n, r)), [1 - share for share in presence], np.ones((n, p))
    for _ in range(rounds):
        for i in range(n):
            for a in range(p):
                part[i, a] = 1 / (absent[a] + sum(kernel[i, a, s] * region[i, s] for s in range(r)))
            for s in range(r):
                region[i, s] = 1 / (1 + sum(kernel[i, a, s] * part[i, a] for a in range(p)))
        absent = [(1 - presence[a]) * n / sum(part[i, a] for i in range(n)) for a in range(p)]
    part = 1 / (np.array(absent) + np.einsum("iar,ir->ia", kernel, region))
    return kernel * part[:, :, None] * region[:, None]


def test_sinkhorn_is_the_written_out_loop():
    scores, presence = random_scores(3, 2, 5, 2.0), [0.6, 1.0]
    for rounds in (1, 5, 60):
        np.testing.assert_allclose(sinkhorn(scores, torch.tensor(presence), iterations=rounds), written_out(scores, presence, rounds), atol=1e-9)


def in_logarithms(scores, presence, rounds):
    """The same scaling, every step in logarithms, where no score is too large."""
    with np.errstate(divide="ignore"):
        region, absent = np.zeros((len(scores), 1, scores.shape[2])), np.log(1 - presence)
        for _ in range(rounds):
            part = -np.logaddexp(np.logaddexp.reduce(scores + region, axis=2), absent)
            region = -np.logaddexp(np.logaddexp.reduce(scores + part[:, :, None], axis=1, keepdims=True), 0)
            absent = np.log((1 - presence) * len(scores)) - np.logaddexp.reduce(part, axis=0)
        part = -np.logaddexp(np.logaddexp.reduce(scores + region, axis=2), absent)
    return np.exp(scores + part[:, :, None] + region)


@given(
    n=st.integers(1, 5),
    p=st.integers(1, 5),
    more=st.integers(0, 5),
    scale=st.floats(0.1, 500),
    rounds=st.sampled_from([1, 3, 40]),
    shares=st.lists(st.sampled_from([0.2, 0.7, 1.0]), min_size=5, max_size=5),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60)
def test_sinkhorn_is_the_loop_in_logarithms_however_large_the_scores(n, p, more, scale, rounds, shares, masked, seed):
    scores, presence = random_scores(n, p, p + more, scale, seed), torch.tensor(shares[:p], dtype=torch.double)
    mask = random_mask(n, p, p + more, seed) if masked else torch.ones(n, p + more, dtype=torch.bool)
    expected = in_logarithms(scores.masked_fill(~mask[:, None], -torch.inf).numpy(), presence.numpy(), rounds)
    np.testing.assert_allclose(sinkhorn(scores, presence, mask, rounds), expected, atol=1e-6)
    # In float32 a score of 500 is known to 3e-5 only, and so is what is made of it.
    np.testing.assert_allclose(sinkhorn(scores.float(), presence, mask, rounds), expected, atol=1e-5 + 1e-5 * scale)


def test_sinkhorn_takes_logarithms_only_where_it_must(monkeypatch):
    formed, scaled = [], matching._scaled
    monkeypatch.setattr(matching, "_scaled", lambda *given: formed.append(1) or scaled(*given))
    for scale, least, most in ((1, 1, 1), (500, 2, 20)):
        formed.clear()
        sinkhorn(random_scores(5, 4, 9, scale), 0.7, iterations=200)
        assert least <= len(formed) <= most, (scale, len(formed))


def test_sinkhorn_can_be_differentiated():
    mask = random_mask(2, 2, 4)
    for scale in (1.0, 200.0):
        scores = random_scores(2, 2, 4, scale).requires_grad_()
        assert torch.autograd.gradcheck(lambda values: sinkhorn(values, 0.7, mask, 3), scores, fast_mode=True)


@given(n=st.integers(2, 6), p=st.integers(1, 4), more=st.integers(1, 4), share=st.sampled_from([0.3, 0.7, 0.9]), seed=st.integers(0, 999))
@settings(max_examples=15)
def test_sinkhorn_with_absence_is_the_only_plan_of_its_form_with_its_sums(n, p, more, share, seed):
    scores = random_scores(n, p, p + more, 1.0, seed)
    plan = sinkhorn(scores, share, iterations=1500)
    bins, slack = 1 - plan.sum(2), 1 - plan.sum(1)
    assert (bins > -1e-9).all() and (slack > -1e-9).all()
    torch.testing.assert_close(bins.mean(0), torch.full((p,), 1 - share, dtype=torch.double), atol=1e-6, rtol=0)
    # log of plan / (exp(scores) slack) is the part's potential, the same in all regions; its bin differs by a constant of the part.
    potential = plan.log() - scores - slack.log()[:, None]
    torch.testing.assert_close(potential, potential[:, :, :1].expand_as(potential), atol=1e-5, rtol=0)
    bias = bins.log() - potential[:, :, 0]
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), atol=1e-5, rtol=0)


def test_large_scores_do_no_harm_and_give_the_assignment():
    scores = random_scores(5, 4, 9, scale=1e4)
    for dtype in (torch.float32, torch.float64):
        plan = sinkhorn(scores.to(dtype), iterations=3000)
        assert torch.isfinite(plan).all() and (plan.sum(2) - 1).abs().max() < 1e-3
        assert torch.equal(plan.round(), assignment(scores).to(dtype))
        assert torch.isfinite(sinkhorn(scores.to(dtype), presence=0.5)).all()


def test_even_scores_give_even_shares_and_masked_scores_do_not_count():
    torch.testing.assert_close(sinkhorn(torch.zeros(2, 3, 8)), torch.full((2, 3, 8), 1 / 8))
    scores, mask = torch.zeros(1, 2, 5), torch.tensor([[True, True, False, True, True]])
    scores[0, :, 2] = torch.nan  # a masked region may hold anything
    expected = torch.tensor([0.25, 0.25, 0, 0.25, 0.25]).expand(1, 2, 5)
    torch.testing.assert_close(sinkhorn(scores, mask=mask), expected)
    assert not assignment(torch.nan_to_num(scores, nan=9.0), mask=mask)[0, :, 2].any()


@given(seed=st.integers(0, 99), presence=st.sampled_from([1.0, 0.7]))
@settings(max_examples=20)
def test_a_batch_is_its_photographs_and_order_does_not_matter(seed, presence):
    scores, draw = random_scores(5, 3, 6, seed=seed), np.random.default_rng(seed)
    images, parts, regions = (torch.from_numpy(draw.permutation(size)) for size in scores.shape)
    shuffle = lambda values: values[images][:, parts][:, :, regions]
    for project in (assignment, sinkhorn):
        torch.testing.assert_close(project(shuffle(scores), presence), shuffle(project(scores, presence)))
        if presence == 1:
            torch.testing.assert_close(project(scores), torch.cat([project(one[None]) for one in scores]))


# ---- the solvers ----


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("presence", [1.0, 0.6])
def test_solvers_do_not_mind_the_order_of_anything(solver, presence):
    x, truth = planted(n=10, r=8, d=5, parts=3)
    x = x.double()
    filters = x[:, :3].mean(0)
    draw = np.random.default_rng(0)
    images, parts, regions = (torch.from_numpy(draw.permutation(size)) for size in truth.shape)
    plain = solver(x, filters, presence=presence)
    shuffled = solver(x[images][:, regions], filters[parts], presence=presence)
    assert torch.equal(shuffled.weights, plain.weights[images][:, parts][:, :, regions])
    torch.testing.assert_close(shuffled.objective, plain.objective)
    assert shuffled.converged == plain.converged


@pytest.mark.parametrize("solver", SOLVERS)
@given(presence=st.sampled_from([1.0, 0.5, 0.75]), masked=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=8)
def test_what_a_solver_returns_is_a_matching_with_its_filters_and_its_objective(solver, presence, masked, seed):
    x, filters = problem(n=4, r=6, seed=seed)
    mask = random_mask(4, 3, 6, seed) if masked else None
    found = solver(x, filters, presence=presence, mask=mask)
    assert is_matching(found.weights) and (found.weights.sum((0, 2)) == presence * 4).all()
    assert mask is None or not (found.weights * ~mask[:, None]).any()
    for p, chosen in enumerate(found.weights.unbind(1)):
        torch.testing.assert_close(found.filters[p], x[chosen.bool()].mean(0))
    assert found.objective[-1] == pytest.approx(objective(found.weights, x), abs=1e-9)


@given(n=st.integers(1, 8), parts=st.integers(1, 3), d=st.integers(1, 5), seed=st.integers(0, 9999))
@settings(max_examples=60)
def test_hungarian_alternation_never_falls_on_centred_data(n, parts, d, seed):
    x, filters = problem(n, 5, d, parts, seed)
    found = hungarian(x, filters)
    assert all(after >= before - 1e-9 for before, after in zip(found.objective, found.objective[1:]))
    assert found.converged and not hungarian(x, filters, steps=1).converged
    again = hungarian(x, found.filters)  # where it stopped, it stays
    assert torch.equal(again.weights, found.weights)


def test_soft_assign_anneals_as_it_says(monkeypatch):
    monkeypatch.setattr(matching, "_SCALINGS", 500)  # to convergence in each step
    x, filters = problem()
    beta, weights, expected = 0.8 / float(x.square().mean()), None, []
    for _ in range(3):
        weights = sinkhorn(beta * torch.einsum("nrd,pd->npr", x, filters), iterations=2000)
        filters = torch.einsum("npr,nrd->pd", weights, x) / len(x)
        expected.append(float(len(x) * filters.square().sum()))
        beta *= 1.3
    found = soft_assign(x, problem()[1], steps=3, start=0.8, growth=1.3)
    np.testing.assert_allclose(found.objective[:3], expected, rtol=1e-4)
    assert torch.equal(found.weights, assignment(torch.einsum("nrd,pd->npr", x, filters)))


def test_gradient_soft_assign_adds_up_what_the_steps_said(monkeypatch):
    monkeypatch.setattr(matching, "_SCALINGS", 500)
    x, filters = problem()
    logits, expected = torch.zeros(12, 3, 9, dtype=torch.double), []
    for _ in range(3):
        logits = logits + 2 * 0.4 / float(x.square().mean()) * torch.einsum("nrd,pd->npr", x, filters)
        filters = torch.einsum("npr,nrd->pd", sinkhorn(logits, iterations=2000), x) / len(x)
        expected.append(float(len(x) * filters.square().sum()))
    found = gradient_soft_assign(x, problem()[1], steps=3, rate=0.4)
    np.testing.assert_allclose(found.objective[:3], expected, rtol=1e-4)


def without_votes_for_oneself(weights, x):
    """J, but M in place of M² on the diagonal: the same on assignments."""
    size = len(x)
    filters = torch.einsum("npr,nrd->pd", weights, x) / size
    return float(size * filters.square().sum() + (weights * (1 - weights) * x.square().sum(2)[:, None]).sum() / size)


def test_frank_wolfe_searches_the_line_exactly():
    inside, line = 0, np.linspace(0, 1, 100_001)
    for seed in range(8):
        x, filters = problem(n=6, r=8, parts=4, seed=seed)
        found = frank_wolfe(x, filters, steps=6)
        weights = assignment(torch.einsum("nrd,pd->npr", x, filters))
        assert without_votes_for_oneself(weights, x) == pytest.approx(objective(weights, x))
        assert found.objective[0] == pytest.approx(objective(weights, x))
        for reached in found.objective[1:-1]:
            means = torch.einsum("npr,nrd->pd", weights, x) / len(x)
            votes = x.square().sum(2)[:, None] / len(x)
            target = assignment(2 * torch.einsum("nrd,pd->npr", x, means) + (1 - 2 * weights) * votes)
            start, middle, end = (without_votes_for_oneself(weights + t * (target - weights), x) for t in (0, 0.5, 1))
            values = start + (4 * middle - 3 * start - end) * line + 2 * (start + end - 2 * middle) * line**2
            step = line[values.argmax()]
            inside += 0 < step < 1
            weights = weights + step * (target - weights)
            means = torch.einsum("npr,nrd->pd", weights, x) / len(x)
            assert reached == pytest.approx(float(len(x) * means.square().sum()), abs=1e-2)
        assert found.objective[-1] >= found.objective[0] - 1e-9
    assert inside > 3, "no step ended between two assignments, so the search was not tried"


# ---- planted parts ----


def test_planted_parts_are_as_they_say():
    x, truth = planted(n=300, r=12, d=8, parts=3, presence=0.7, strength=3.0, seed=1)
    assert x.shape == (300, 12, 8) and is_matching(truth) and x.mean((0, 1)).abs().max() < 1e-5
    assert 0.6 < truth.sum(2).mean() < 0.8
    means = torch.einsum("npr,nrd->pd", truth, x) / truth.sum((0, 2))[:, None]
    offset = 3 * 3.0**2 * 0.7 / 12 / 3  # the parts' own share of the mean that was taken off
    torch.testing.assert_close(means @ means.T, 9 * torch.eye(3) - offset * 2, atol=1.0, rtol=0)
    assert torch.equal(planted(seed=3)[0], planted(seed=3)[0]) and not torch.equal(planted(seed=3)[0], planted(seed=4)[0])


@given(seed=st.integers(0, 999))
@settings(max_examples=20)
def test_recovered_pairs_the_parts_as_suits_best(seed):
    one, two = (assignment(random_scores(6, 3, 5, seed=seed + shift), presence) for shift, presence in ((0, 1.0), (1, 0.6)))
    common = max(sum(float((one[:, p] * two[:, q]).sum()) for p, q in enumerate(order)) for order in permutations(range(3)))
    assert recovered(one, two) == pytest.approx(2 * common / float(one.sum() + two.sum()))
    assert recovered(one, one[:, [2, 0, 1]]) == 1


def test_soft_assign_finds_planted_parts_where_hungarian_is_caught():
    soft, hard = [], []
    for seed in range(6):
        x, truth = planted(strength=3.0, seed=seed)
        soft.append(recovered(from_random(soft_assign, x, 6, seed=seed).weights, truth))
        hard.append(recovered(from_random(hungarian, x, 6, seed=seed).weights, truth))
    assert median(soft) >= 0.85 and median(hard) < 0.5, (soft, hard)


def test_the_presence_prior_helps_where_parts_are_absent():
    told, untold = [], []
    for seed in range(4):
        x, truth = planted(strength=3.5, presence=0.7, seed=seed)
        told.append(recovered(from_random(soft_assign, x, 6, seed=seed, presence=0.7).weights, truth))
        untold.append(recovered(from_random(soft_assign, x, 6, seed=seed).weights, truth))
    assert median(told) > median(untold) + 0.05, (told, untold)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_keeps_parts_that_are_shown_to_it(solver):
    x, truth = planted(strength=5.0)
    shown = torch.einsum("npr,nrd->pd", truth, x) / len(x)
    assert recovered(solver(x, shown).weights, truth) > 0.95


def test_distinct_takes_the_worthiest_that_are_unlike():
    angles = torch.tensor([0.0, 0.1, 1.5, 1.6, 3.0])
    filters, worth = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([1.0, 5.0, 2.0, 3.0, 4.0])
    assert distinct(filters, worth, 3).tolist() == [1, 4, 3]
    assert distinct(filters, worth, 4).tolist() == [1, 4, 3, 2]  # none unlike is left: the worthiest of the others
    assert distinct(10 * filters, worth, 2).tolist() == [1, 4]


# ---- what goes wrong ----

x, start = problem()


@pytest.mark.parametrize("solver", [*SOLVERS, lambda x, _, **options: from_random(soft_assign, x, 3, 1, **options)])
@pytest.mark.parametrize(
    "options, said",
    [
        ({"presence": 0}, "presence over 0 and at most 1"),
        ({"presence": 1.2}, "presence over 0 and at most 1"),
        ({"presence": torch.ones(2)}, "one number or 3"),
        ({"mask": torch.ones(12, 4, dtype=torch.bool)}, r"mask of truth values \(12, 9\)"),
        ({"mask": torch.ones(12, 9)}, "mask of truth values"),
        ({"mask": torch.arange(9).expand(12, 9) < 2}, "a photograph with 2 regions"),
    ],
)
def test_options_that_cannot_be_are_answered(solver, options, said):
    with pytest.raises(ValueError, match=said):
        solver(x, start, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_descriptors_that_cannot_be_matched_are_answered(solver):
    for spoiled in (torch.nan, torch.inf):
        wrong = x.clone()
        wrong[3, 2, 1] = spoiled
        with pytest.raises(ValueError, match="NaN or infinite"):
            solver(wrong, start)
        blank, mask = x.clone(), torch.isfinite(wrong).all(2)
        blank[3, 2] = 100  # what a masked region holds does not matter
        assert torch.equal(solver(wrong, start, mask=mask).weights, solver(blank, start, mask=mask).weights)
        from_random(solver, wrong, 3, mask=mask, steps=2)
    with pytest.raises(ValueError, match="10 parts, but a photograph with 9 regions"):
        solver(x, torch.ones(10, 6, dtype=torch.double))
    with pytest.raises(ValueError, match="10 parts, but a photograph with 9 regions"):
        from_random(solver, x, 10)
    with pytest.raises(ValueError, match="regions are the same"):
        solver(torch.zeros(4, 5, 6), torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"filters \(p, d\), not \(12, 9, 6\) and \(3, 5\)"):
        solver(x, start[:, :5])


@pytest.mark.parametrize("project", [assignment, sinkhorn])
def test_scores_that_cannot_be_matched_are_answered(project):
    for spoiled in (torch.nan, torch.inf, -torch.inf):
        scores = random_scores()
        scores[1, 2, 3] = spoiled
        with pytest.raises(ValueError, match="NaN or infinite"):
            project(scores)
    with pytest.raises(ValueError, match="5 parts, but a photograph with 4 regions"):
        project(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"scores \(n, p, r\)"):
        project(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"not \(0, 3, 4\)"):
        project(torch.zeros(0, 3, 4))


def test_a_random_start_takes_allowed_regions_only():
    few = torch.arange(9).expand(12, 9) < 4  # fewer than 3 candidates for each of 3 parts
    found = from_random(hungarian, x, 3, mask=few)
    assert found.weights.shape == (12, 3, 9) and not found.weights[:, :, 4:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gpu_gives_what_the_processor_gives(solver):
    data, _ = planted(n=20, r=12, d=8, parts=3)
    data, mask = data.double(), random_mask(20, 3, 12)
    filters = data[:, :3].mean(0)
    here = solver(data, filters, presence=0.7, mask=mask)
    there = solver(data.cuda(), filters.cuda(), presence=0.7, mask=mask)
    assert there.weights.is_cuda and torch.equal(there.weights.cpu(), here.weights)
    torch.testing.assert_close(there.objective, here.objective)
    assert matching.from_random(solver, data.cuda(), 3).weights.is_cuda
