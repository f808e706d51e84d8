"""Moments in one pass, PCA whitening and LDA filters, against numpy in float64 and against scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from partlib.whitening import Moments, NeighbourWhitening, PCAWhitening, lda_filters, moments


def correlated(n, d, seed=0, mean=3.0):
    """Vectors whose directions are correlated and of very different spread, in float64."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) @ (draw.normal(size=(d, d)) * 2.0 ** -np.arange(d)) + mean * draw.normal(size=d)


def covariance(x):
    return np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1])


# ---- moments ----


@given(n=st.integers(1, 60), d=st.integers(1, 6), cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 10**6))
def test_any_cut_into_batches_gives_the_covariance_of_numpy(n, d, cuts, seed):
    x = correlated(n, d, seed)
    batches = np.split(x, sorted(min(cut, n) for cut in cuts))  # some of them empty
    seen = moments(torch.from_numpy(batch) for batch in batches)
    assert seen.n == n
    np.testing.assert_allclose(seen.mean, x.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(seen.covariance, covariance(x), rtol=0, atol=1e-10 * np.trace(covariance(x)) + 1e-25)


@pytest.mark.parametrize(("mean", "digits"), [(1e6, 1e-10), (-1e9, 1e-7)])
def test_a_huge_mean_costs_no_digits(mean, digits):
    x = np.random.default_rng(0).normal(size=(5000, 5)).round(6) + mean
    expected = covariance(x - mean)  # exact: the difference of neighbouring numbers has no rounding
    for batch in (1, 7, 640, 5000):
        seen = moments(torch.from_numpy(x[i : i + batch]) for i in range(0, len(x), batch))
        np.testing.assert_allclose(seen.covariance, expected, atol=digits)


def test_numbers_of_half_and_single_precision_are_summed_in_double():
    for kind in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.from_numpy(correlated(200, 4)).to(kind)
        seen = moments(x)
        assert seen.covariance.dtype == torch.float64
        np.testing.assert_allclose(seen.covariance, covariance(x.double().numpy()), rtol=1e-10, atol=1e-12)


def test_one_array_one_tensor_and_one_batch_are_the_same():
    x = correlated(20, 3)
    several = [moments(x), moments(torch.from_numpy(x)), moments([x]), moments(iter([x[:5], x[5:]])), Moments().update(x[:5]).update(x[5:])]
    for seen in several:
        np.testing.assert_allclose(seen.covariance, covariance(x), rtol=1e-10, atol=1e-12)


def test_batches_are_left_as_they_are():
    x = torch.from_numpy(correlated(20, 3))
    kept = x.clone()
    seen = moments([x])
    before = seen.covariance.clone(), seen.mean.clone()
    Moments().update(x).update(x + 1)
    assert torch.equal(x, kept) and torch.equal(seen.covariance, before[0]) and torch.equal(seen.mean, before[1])


def test_two_million_vectors_need_the_memory_of_one_batch():
    """In a process of its own, whose peak memory is that of this alone: float64 copies of all would be 128 MB."""
    pytest.importorskip("resource")
    code = """
import resource, sys, torch
from partlib.whitening import moments
def batches(count):
    for i in range(count):
        yield torch.arange(80_000, dtype=torch.float32).view(10_000, 8).add_(i).remainder_(1000.0)
moments(batches(5))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(moments(batches(200)).n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    n, grown = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or kilobytes
    assert n == 2_000_000 and grown * unit < 20e6


@given(n=st.integers(1, 20), d=st.integers(1, 5), shrinkage=st.floats(0, 2), seed=st.integers(0, 999))
def test_shrinking_adds_the_mean_variance_to_the_diagonal(n, d, shrinkage, seed):
    x = correlated(n, d, seed)
    expected = covariance(x)
    for i in range(d):
        expected[i, i] += shrinkage * np.mean([np.var(x[:, j]) for j in range(d)])
    np.testing.assert_allclose(moments(x).shrunk(shrinkage), expected, rtol=1e-9, atol=1e-12)


# ---- PCA whitening ----


def whitened(x, dims, shrinkage, power):
    """By definition: y = Λ^(−power) Eᵀ (x − μ), strongest first, each direction's largest entry positive."""
    sigma = covariance(x)
    values, vectors = np.linalg.eigh(sigma + shrinkage * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    columns = []
    for j in np.argsort(-values)[:dims]:
        e = vectors[:, j] * np.sign(vectors[np.abs(vectors[:, j]).argmax(), j])
        columns.append([values[j] ** -power * e @ row for row in x - x.mean(0)])
    return np.stack(columns, axis=1)


@given(
    d=st.integers(1, 6), more=st.integers(20, 80), shrinkage=st.sampled_from([0.0, 0.01, 0.5]),
    power=st.sampled_from([0.0, 0.25, 0.5]), seed=st.integers(0, 10**6), share=st.floats(0.01, 1),
)  # fmt: skip
@settings(max_examples=60)
def test_whitening_is_its_definition(d, more, shrinkage, power, seed, share):
    x, dims = correlated(d + more, d, seed), max(1, int(share * d))
    values = np.linalg.eigvalsh(covariance(x))[::-1]
    assume(d == 1 or (values[1:] / values[:-1]).max() < 0.98)  # directions of equal spread are not determined
    fitted = PCAWhitening(dims, shrinkage, power).fit(torch.from_numpy(x))
    found = fitted.transform(torch.from_numpy(x))
    assert found.dtype == torch.float32 and found.shape == (len(x), dims)
    expected = whitened(x, dims, shrinkage, power)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@given(d=st.integers(1, 8), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_whitened_vectors_have_the_identity_as_covariance(d, seed):
    x = torch.from_numpy(correlated(10 * d + 20, d, seed))
    found = PCAWhitening().fit(x).transform(x).numpy().astype(np.float64)
    np.testing.assert_allclose(covariance(found), np.eye(d), atol=1e-3)
    rounding = 1e-6 * x.abs().max() / PCAWhitening().fit(x).variances_.min().sqrt()  # single precision, blown up by whitening
    np.testing.assert_allclose(found.mean(0), 0, atol=float(rounding))


@pytest.mark.parametrize("dims", [None, 1, 4])
def test_whitening_agrees_with_scikit_learn(dims):
    x = correlated(300, 8)
    theirs = PCA(dims, whiten=True).fit_transform(x) * np.sqrt(300 / 299)  # they divide by n − 1
    ours = PCAWhitening(dims).fit(torch.from_numpy(x)).transform(torch.from_numpy(x)).numpy()
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-4)


def test_eigenvalues_and_directions_are_those_of_the_covariance():
    x = correlated(100, 6)
    fitted = PCAWhitening(shrinkage=0.1).fit(torch.from_numpy(x))
    sigma = covariance(x) + 0.1 * np.trace(covariance(x)) / 6 * np.eye(6)
    directions, variances = fitted.directions_.double().numpy(), fitted.variances_.double().numpy()
    np.testing.assert_allclose(sigma @ directions, directions * variances, atol=1e-5 * variances[0])
    np.testing.assert_allclose(directions.T @ directions, np.eye(6), atol=1e-6)
    assert (np.diff(variances) <= 0).all()
    assert all(column[np.abs(column).argmax()] > 0 for column in directions.T)
    assert {a.dtype for a in (fitted.mean_, fitted.directions_, fitted.variances_)} == {torch.float32}


@given(n=st.integers(2, 10), d=st.integers(10, 16), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_few_vectors_span_few_directions(n, d, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()
    fitted = PCAWhitening().fit(x)
    assert fitted.directions_.shape == (d, n - 1)
    np.testing.assert_allclose(covariance(fitted.transform(x).double().numpy()), np.eye(n - 1), atol=1e-3)
    with pytest.raises(ValueError, match=f"{n} dimensions of {n - 1} directions"):
        PCAWhitening(dims=n).fit(x)
    assert PCAWhitening(shrinkage=0.1).fit(moments(x)).directions_.shape == (d, d)  # shrinkage lends variance to all


def test_a_repeated_and_a_constant_channel_add_no_direction():
    x = correlated(50, 3)
    x = np.concatenate([x, x[:, :1], np.full((50, 1), 7.0)], axis=1)
    assert PCAWhitening().fit(torch.from_numpy(x)).directions_.shape == (5, 3)


@given(
    n=st.integers(2, 30), cut=st.integers(0, 30), scale=st.sampled_from([1e-6, 1.0, 1e6]), single=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_identical_vectors_have_no_direction(n, cut, scale, single, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 8)) * scale).expand(n, 8)
    x = x.float() if single else x  # of single precision the mean is exact; of double it is not, and leaves a rounding error
    with pytest.raises(ValueError, match=f"all {n} vectors are the same"):
        PCAWhitening().fit(moments([x[: min(cut, n)], x[min(cut, n) :]]))
    with pytest.raises(ValueError, match="all 3 vectors are the same"):
        PCAWhitening().fit(torch.zeros(3, 8))


def test_nearly_identical_vectors_have_some():
    x = torch.full((4, 3), 1000.0)
    x[0, 1] += 1e-3
    assert PCAWhitening().fit(x).directions_.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("factor", [1e-4, 0.5, 1e5])
def test_whitening_forgets_scale_and_origin(factor):
    x = torch.from_numpy(correlated(80, 5))
    plain, other = (PCAWhitening(3, shrinkage=0.01).fit(v).transform(v).numpy() for v in (x, factor * (x - 20)))
    np.testing.assert_allclose(other, plain, atol=1e-4)


def test_whitening_does_not_depend_on_the_order_of_vectors_or_batches():
    x = torch.from_numpy(correlated(80, 5)).float()
    shuffled = x[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    whole, streamed = PCAWhitening().fit(x), PCAWhitening().fit(moments(shuffled.split(7)))
    np.testing.assert_allclose(whole.transform(x), streamed.transform(x), atol=1e-4)


def test_regions_are_whitened_like_vectors_and_arrays_like_tensors():
    x = torch.from_numpy(correlated(60, 5)).float()
    fitted = PCAWhitening(3).fit(x)
    np.testing.assert_array_equal(fitted.transform(x.view(6, 10, 5)).flatten(0, 1), fitted.transform(x))
    np.testing.assert_array_equal(fitted.transform(x.numpy()), fitted.transform(x))
    np.testing.assert_allclose(PCAWhitening(3).fit(x.numpy()).transform(x), fitted.transform(x), atol=1e-6)


@given(p=st.integers(1, 4), d=st.integers(2, 6), dims=st.integers(1, 6), power=st.sampled_from([0.0, 0.25, 0.5]), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_folded_filters_score_vectors_as_the_filters_score_whitened_ones(p, d, dims, power, seed):
    x = torch.from_numpy(correlated(40, d, seed)).float()
    fitted = PCAWhitening(min(d, dims), shrinkage=0.1, power=power).fit(x)
    filters = torch.from_numpy(np.random.default_rng(seed).normal(size=(p, min(d, dims)))).float()
    folded, offsets = fitted.fold(filters)
    assert folded.shape == (p, d) and offsets.shape == (p,) and folded.dtype == offsets.dtype == torch.float32
    expected = fitted.transform(x).double() @ filters.double().T
    np.testing.assert_allclose(x.double() @ folded.double().T + offsets.double(), expected, atol=1e-4 * expected.abs().max() + 1e-4)


# ---- more dimensions than vectors ----


@given(n=st.integers(3, 20), more=st.integers(1, 20), shrinkage=st.sampled_from([0.0, 0.01, 0.5]), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_few_long_vectors_are_whitened_as_by_their_covariance(n, more, shrinkage, seed):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, n)) @ np.diag(1.3 ** -np.arange(n)) @ draw.normal(size=(n, n + more)) + draw.normal()
    x = torch.from_numpy(x).float()
    dims = n - 2
    values = np.linalg.eigvalsh(covariance(x.double().numpy()))[::-1][: n - 1]
    assume((values[1:] / values[:-1]).max() < 0.95)  # directions of equal spread are not determined
    few, whole = (PCAWhitening(dims, shrinkage).fit(v) for v in (x, moments(x)))
    np.testing.assert_allclose(few.mean_, whole.mean_, atol=1e-6)
    np.testing.assert_allclose(few.variances_, whole.variances_, rtol=1e-4)
    np.testing.assert_allclose(few.directions_, whole.directions_, atol=1e-4)
    np.testing.assert_allclose(few.transform(x), whole.transform(x), atol=1e-4 * float(whole.transform(x).abs().max()))


def test_shrinkage_lends_no_direction_to_few_long_vectors():
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert PCAWhitening(shrinkage=0.1).fit(x).directions_.shape == (9, 4)
    assert PCAWhitening(shrinkage=0.1).fit(moments(x)).directions_.shape == (9, 9)
    with pytest.raises(ValueError, match="5 dimensions of 4 directions"):
        PCAWhitening(5, shrinkage=0.1).fit(x)


def test_codes_of_fifty_thousand_dimensions_never_make_their_covariance():
    x = torch.randn(40, 51_200, generator=torch.Generator().manual_seed(0))  # whose Σ would be of 21 GB
    found = PCAWhitening(30).fit(x)
    np.testing.assert_allclose(found.directions_.T @ found.directions_, np.eye(30), atol=1e-4)
    np.testing.assert_allclose(covariance(found.transform(x).double().numpy()), np.eye(30), atol=1e-3)


# ---- LDA filters ----


@given(n=st.integers(2, 40), d=st.integers(1, 6), p=st.integers(1, 3), shrinkage=st.sampled_from([0.01, 0.1, 1.0]), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_filters_are_solved_by_hand(n, d, p, shrinkage, seed):
    x, means = correlated(n, d, seed), correlated(p, d, seed + 1)
    sigma = covariance(x)
    inverse = np.linalg.inv(sigma + shrinkage * np.trace(sigma) / d * np.eye(d))
    expected = np.array([inverse @ (mean - x.mean(0)) for mean in means])
    found = lda_filters(torch.from_numpy(means), moments(x), shrinkage)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_filter_of_one_class_of_two_is_fishers_discriminant():
    # The covariance of everything is that within the classes plus a multiple of (m₁ − m₀)(m₁ − m₀)ᵀ: same direction.
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1], [150, 50])
    x = correlated(200, 6) + np.outer(y, draw.normal(size=6))
    fisher = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    w = lda_filters(x[y == 1].mean(0, keepdims=True), moments(x), shrinkage=0)[0].double().numpy()
    assert w @ fisher / np.linalg.norm(w) / np.linalg.norm(fisher) > 1 - 1e-6


def test_the_filter_of_the_mean_of_everything_is_zero():
    x = correlated(30, 4)
    np.testing.assert_allclose(lda_filters(x.mean(0, keepdims=True), moments(x)), np.zeros((1, 4)), atol=1e-6)


# ---- whitening by neighbours ----


def kinds_in_noise(n=120, d=30, kinds=6, seed=0):
    """Codes of some kinds along weak directions, with strong directions that say nothing of the kind."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % kinds
    codes = 0.05 * torch.randn(n, d, generator=draw)
    codes[:, :kinds] += 0.5 * torch.eye(kinds)[labels]
    codes[:, kinds : kinds + 3] += 0.3 * torch.randn(n, 3, generator=draw)
    return codes, labels


def test_neighbour_whitening_equals_its_formula_written_out():
    codes, _ = kinds_in_noise(n=60, d=10)
    found = NeighbourWhitening(dims=4, neighbours=3, rounds=2).fit(codes)
    z = torch.nn.functional.normalize(codes.double(), dim=1)
    z = z - z.mean(0)
    seen = z
    for _ in range(2):
        within, pairs = torch.zeros(10, 10, dtype=torch.float64), 0
        for i in range(60):
            cosines = torch.nn.functional.cosine_similarity(seen[i][None], seen)
            cosines[i] = -2
            for j in cosines.topk(3).indices:
                within += torch.outer(z[i] - z[j], z[i] - z[j]) / 2
                pairs += 1
        within = within / pairs
        within += within.trace() / 10 * torch.eye(10, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(within)
        white = z @ (vectors * values.rsqrt()) @ vectors.T
        strongest = torch.linalg.eigh(white.T @ white)[1][:, -4:]
        seen = white @ strongest
    expected = torch.nn.functional.normalize(seen, dim=1)
    result = found.transform(codes).double()
    torch.testing.assert_close(result @ result.T, expected @ expected.T, rtol=0, atol=1e-4)  # up to signs and order: the same cosines


def test_neighbour_whitening_silences_what_neighbours_differ_in():
    codes, labels = kinds_in_noise()
    others, truth = kinds_in_noise(seed=1)
    right = lambda x: float((labels[torch.cdist(x(others), x(codes)).argmin(1)] == truth).float().mean())
    plain = right(lambda c: torch.nn.functional.normalize(c, dim=1))
    assert right(NeighbourWhitening(dims=8).fit(codes).transform) >= plain
    spread = NeighbourWhitening(dims=8).fit(codes).projection_.norm(dim=1)
    assert spread[6:9].max() < 0.7 * spread[:6].min()


def test_neighbour_whitening_does_not_depend_on_the_order_and_takes_more_dimensions_than_codes():
    codes, _ = kinds_in_noise(n=40, d=200)
    shuffled = codes[torch.randperm(40)]
    a, b = (NeighbourWhitening(dims=16).fit(x).transform(codes) for x in (codes, shuffled))
    torch.testing.assert_close(a @ a.T, b @ b.T, rtol=0, atol=1e-4)


def test_neighbour_whitening_answers_mistakes():
    codes, _ = kinds_in_noise(n=20)
    for mistake, words in [
        (lambda: NeighbourWhitening(neighbours=20).fit(codes), "20 neighbours of 19"),
        (lambda: NeighbourWhitening().fit(torch.ones(20, 5)), "are the same"),
        (lambda: NeighbourWhitening().transform(codes), "call fit first"),
        (lambda: NeighbourWhitening().fit(codes).transform(codes[:, :4]), "fitted on codes of 30"),
    ]:
        with pytest.raises(ValueError, match=words):
            mistake()
