"""Junk, the protocols of Oxford and Paris, and what is done to rankings and codes after a first search, against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partlib import retrieval
from partlib.retrieval import Diffusion, Index, PairWhitening, augment, evaluate, evaluate_each, expand, judge, merge_scales, rerank, revisited
from partlib.retrieval import geometry, mutual_neighbours, rankings, relevance, similarity_transform, unit


def some_codes(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def unit_rows(x):
    x = np.asarray(x, dtype=float)
    return x / np.sqrt((x**2).sum(1, keepdims=True))


# ---- the measures, counted answer by answer ----


def ap_by_area(order, right, junk, variant):
    """Walk down the ranking: junk is stepped over; each right answer adds a strip of recall, as high as the variant says."""
    seen, hits, before, area = 0, 0, 1.0, 0.0
    total = len(set(right) - set(junk))
    for answer in order:
        if answer in junk:
            continue
        seen += 1
        hits += answer in right
        now = hits / seen
        if answer in right:
            area += (now if variant == "sum" else (before + now) / 2) / total
        before = now
    return area if total else math.nan


def precision_by_counting(order, right, junk, k):
    kept = [answer for answer in order if answer not in junk]
    last = max(place for place, answer in enumerate(kept, 1) if answer in right)
    shown = kept[: min(k, last)]
    return sum(answer in right for answer in shown) / len(shown)


lists = st.integers(1, 25).flatmap(
    lambda n: st.tuples(st.permutations(range(n)), st.lists(st.sampled_from(["easy", "hard", "junk", "wrong"]), min_size=n, max_size=n))
)


@given(queries=st.lists(lists, min_size=1, max_size=5), variant=st.sampled_from(["sum", "trapezoid"]))
@settings(max_examples=60)
def test_the_revisited_protocol_is_a_walk_down_each_ranking(queries, variant):
    kinds = {what: [[i for i, kind in enumerate(kinds) if kind == what] for _, kinds in queries] for what in ("easy", "hard", "junk")}
    orders = [order for order, _ in queries]
    rules = {"E": (["easy"], ["junk", "hard"]), "M": (["easy", "hard"], ["junk"]), "H": (["hard"], ["junk", "easy"])}
    expected = {}
    for name, (good, bad) in rules.items():
        rows = [(order, sum((kinds[g][q] for g in good), []), sum((kinds[b][q] for b in bad), [])) for q, order in enumerate(orders)]
        rows = [row for row in rows if row[1]]
        if rows:
            expected[name] = {"mAP": 100 * np.mean([ap_by_area(*row, variant) for row in rows]), "queries": len(rows)}
            expected[name] |= {f"mP@{k}": 100 * np.mean([precision_by_counting(*row, k) for row in rows]) for k in (1, 5)}
    if len(expected) < 3:
        with pytest.raises(ValueError, match="no query has any right answer"):
            revisited(orders, **kinds, ks=(1, 5), variant=variant)
        return
    found = revisited(orders, **kinds, ks=(1, 5), variant=variant)
    for name in rules:
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


def test_the_revisited_protocol_by_hand():
    # Ranked 0 to 5: easy, junk, hard, wrong, hard, easy.
    easy, hard, junk = [[0, 5]], [[2, 4]], [[1]]
    found = revisited([range(6)], easy, hard, junk, ks=(1, 5))
    # E: kept 0 3 5: right at 1 and 3. M: kept 0 2 3 4 5: right at 1, 2, 4, 5. H: kept 2 3 4: right at 1 and 3.
    assert found["E"]["mAP"] == pytest.approx(100 * (1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["M"]["mAP"] == pytest.approx(100 * (1 + 1 + (2 / 3 + 3 / 4) / 2 + (3 / 4 + 4 / 5) / 2) / 4)
    assert found["H"]["mAP"] == found["E"]["mAP"]
    assert found["M"]["mP@5"] == pytest.approx(80) and found["E"]["mP@5"] == pytest.approx(200 / 3)


def test_all_junk_no_positives_and_a_database_of_one():
    with pytest.raises(ValueError, match="no query has any right answer"):
        judge([[0, 1]], [[]], [[0, 1]])
    assert judge([[0, 1], [1, 0]], [[], [0]])["queries"] == 1
    assert judge([[0]], [[0]]) == {"mAP": 100, "mP@1": 100, "mP@5": 100, "mP@10": 100, "queries": 1}
    assert judge([[0, 1], [0, 1]], [[0], [1]], [[0], []])["queries"] == 1  # what is right and junk is junk
    assert not relevance([2, 0, 1], [], [0, 1, 2]).size
    with pytest.raises(ValueError, match="rank the whole database"):
        judge([[0, 1]], [[0, 2]])


@given(n=st.integers(3, 20), m=st.integers(1, 6), seed=st.integers(0, 999), variant=st.sampled_from(["sum", "trapezoid"]))
@settings(max_examples=40)
def test_junk_is_taken_out_of_rankings_by_label_too(n, m, seed, variant):
    draw = np.random.default_rng(seed)
    codes, queries, labels, own = some_codes(n, 3, seed), some_codes(m, 3, seed + 1), draw.integers(0, 2, n), draw.integers(0, 2, m)
    junk = [draw.permutation(n)[: draw.integers(0, n)].tolist() for _ in range(m)]
    found = evaluate_each(codes, labels, queries, own, (1,), variant, junk)
    cosines = unit_rows(queries) @ unit_rows(codes).T
    for i in range(m):
        order = sorted(range(n), key=lambda j: -cosines[i, j])
        right = [j for j in range(n) if labels[j] == own[i] and j not in junk[i]]
        expected = ap_by_area(order, right, junk[i], variant)
        np.testing.assert_allclose(found["AP"][i], expected, atol=1e-6)
        first = [j for j in order if j not in junk[i]][0]
        np.testing.assert_allclose(found["P@1"][i], float(first in right) if right else math.nan)


def test_leaving_oneself_out_is_to_be_ones_own_junk():
    codes, labels = some_codes(40, 5), np.arange(40) % 4
    assert evaluate(codes, labels, ks=(1, 5)) == evaluate(codes, labels, codes, labels, ks=(1, 5), junk=np.arange(40)[:, None])
    each = evaluate_each(codes, labels)
    assert evaluate(codes, labels)["mAP"] == pytest.approx(100 * each["AP"].mean()) and each["AP"].shape == (40,)
    lonely = evaluate_each(codes, np.r_[np.zeros(39, int), 1])
    assert np.isnan(lonely["AP"][39]) and np.isnan(lonely["P@1"][39]) and not np.isnan(lonely["AP"][:39]).any()


def test_junk_lists_must_be_one_a_query():
    with pytest.raises(ValueError, match="junk for 1 queries, and there are 2"):
        evaluate(some_codes(4, 3), [0, 0, 1, 1], some_codes(2, 3), [0, 1], junk=[[0]])


def test_rankings_are_sorted_by_cosine_and_ties_stay():
    codes = unit(torch.eye(3)[[0, 1, 0, 2, 1]])
    assert [order.tolist() for order in rankings(codes[:2], codes)] == [[0, 2, 1, 3, 4], [1, 4, 0, 2, 3]]


# ---- expansion ----


@given(n=st.integers(3, 15), m=st.integers(1, 4), k=st.integers(1, 3), alpha=st.sampled_from([0.0, 1.0, 3.0]), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_an_expanded_query_is_a_weighted_sum(n, m, k, alpha, seed):
    codes, queries = some_codes(n, 3, seed), some_codes(m, 3, seed + 1)
    z, q = unit_rows(codes), unit_rows(queries)
    found = expand(queries, codes, k, alpha)
    for i in range(m):
        nearest = sorted(range(n), key=lambda j: -(q[i] @ z[j]))[:k]
        total = q[i] + sum(max(q[i] @ z[j], 0) ** alpha * z[j] for j in nearest)
        np.testing.assert_allclose(found[i], total / np.linalg.norm(total), atol=1e-5)


def test_a_database_augments_itself_without_itself():
    codes = some_codes(12, 4)
    z = unit_rows(codes)
    for found in (augment(codes, 2), expand(codes, codes, 2, among=True)):
        for i in range(12):
            nearest = sorted((j for j in range(12) if j != i), key=lambda j: -(z[i] @ z[j]))[:2]
            total = z[i] + z[nearest].sum(0)
            np.testing.assert_allclose(found[i], total / np.linalg.norm(total), atol=1e-5)
    copies = augment(torch.eye(2)[[0, 0, 0, 1, 1, 1]], 2)  # among copies of itself it cannot tell which is itself
    np.testing.assert_allclose(copies, torch.eye(2)[[0, 0, 0, 1, 1, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="the queries are the database"):
        expand(codes[:3], codes, among=True)


def test_codes_of_several_sizes_are_merged_by_a_mean():
    a, b = some_codes(5, 4).abs(), some_codes(5, 4, 1).abs()
    np.testing.assert_allclose(merge_scales(a, b), unit_rows(unit_rows(a) + unit_rows(b)), atol=1e-6)
    np.testing.assert_allclose(merge_scales(a, b, power=3.0), unit_rows(((unit_rows(a) ** 3 + unit_rows(b) ** 3) / 2) ** (1 / 3)), atol=1e-6)
    assert torch.allclose(merge_scales(-a), -merge_scales(a))
    with pytest.raises(ValueError, match="power 1"):
        merge_scales(-a, b, power=3.0)


# ---- diffusion ----


@given(n=st.integers(2, 14), k=st.integers(1, 5), alpha=st.sampled_from([0.0, 0.5, 0.99]), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_diffusion_solves_the_dense_system(n, k, alpha, seed):
    codes, queries = some_codes(n, 3, seed), some_codes(2, 3, seed + 1)
    z, q = unit_rows(codes), unit_rows(queries)
    cosines = z @ z.T
    near = [set(sorted((j for j in range(n) if j != i), key=lambda j: -cosines[i, j])[:k]) for i in range(n)]
    affinity = np.array([[max(cosines[i, j], 0) ** 3 if j in near[i] and i in near[j] else 0 for j in range(n)] for i in range(n)])
    degree = affinity.sum(1)
    scaled = np.array([[affinity[i, j] / math.sqrt(degree[i] * degree[j]) if affinity[i, j] else 0 for j in range(n)] for i in range(n)])
    model = Diffusion(k, alpha).fit(codes)
    for found, own in zip(model.scores(queries), q):
        poured = np.zeros(n)
        for j in sorted(range(n), key=lambda j: -(own @ z[j]))[:k]:
            poured[j] = max(own @ z[j], 0) ** 3
        np.testing.assert_allclose(found, np.linalg.solve(np.eye(n) - alpha * scaled, poured), rtol=1e-5, atol=1e-5)


def test_diffusion_follows_a_chain_that_cosines_do_not():
    angles = np.linspace(0, 2.2, 12)  # a chain that bends away from its beginning, and a lump nearer to it than the chain's end
    chain = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    lump = np.stack([np.full(5, 0.3), 0.1 * np.arange(5) - 1.5, np.full(5, 1.0)], 1)
    codes = torch.from_numpy(np.concatenate([chain, lump])).float()
    labels, query = np.r_[np.zeros(12, int), np.ones(5, int)], codes[:1]
    by_cosine = next(rankings(unit(query), unit(codes)))
    walked = next(Diffusion(3, 0.95).fit(codes).rankings(query))
    assert sorted(walked) == list(range(17)) and (labels[walked[:12]] == 0).all() and not (labels[by_cosine[:12]] == 0).all()


def test_without_walking_only_the_nearest_count():
    codes = some_codes(20, 4)
    scores = Diffusion(5, 0.0).fit(codes).scores(codes[:3])
    assert ((scores > 0).sum(1) <= 5).all()
    with pytest.raises(ValueError, match="alpha=1"):
        Diffusion(alpha=1).fit(codes)
    with pytest.raises(ValueError, match="call fit"):
        Diffusion().scores(codes)


# ---- geometry ----


@given(scale=st.floats(0.6, 1.6), turn=st.floats(-0.9, 0.9), shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_a_similarity_is_found_among_wrong_matches(scale, turn, shift, seed):
    draw = np.random.default_rng(seed)
    here = draw.uniform(0, 1, (9, 2))
    a, b = scale * np.exp(1j * turn), complex(*shift)
    there = a * (here @ [1, 1j]) + b
    there[:3] += 5 + draw.uniform(0, 3, 3)  # three parts are elsewhere
    votes, found_a, found_b = similarity_transform(here, np.stack([there.real, there.imag], 1), tolerance=1e-3)
    assert votes == pytest.approx(6, abs=1e-6) and abs(found_a - a) < 0.02 and abs(found_b - b) < 0.02


def test_a_similarity_by_trying_every_pair():
    draw = np.random.default_rng(0)
    for _ in range(20):
        here, there, weights = draw.uniform(0, 1, (5, 2)), draw.uniform(0, 1, (5, 2)), draw.uniform(0, 1, 5)
        best, z, t = 0.0, here @ [1, 1j], there @ [1, 1j]
        for i in range(5):
            for j in range(i + 1, 5):
                a = (t[j] - t[i]) / (z[j] - z[i])
                if 0.5 <= abs(a) <= 2 and abs(np.angle(a)) < np.pi / 3:
                    best = max(best, sum(w for w, x, y in zip(weights, z, t) if abs(a * x + (t[i] - a * z[i]) - y) <= 0.1 + 1e-12))
        assert similarity_transform(here, there, weights)[0] == pytest.approx(best, abs=1e-9)


def test_parts_that_are_absent_or_few_agree_on_nothing():
    places = np.array([[0.1, 0.2], [0.8, 0.5], [0.3, 0.9]])
    absent = places.copy()
    absent[1:] = np.nan
    assert similarity_transform(places, absent) == (0.0, 1 + 0j, 0j)
    assert similarity_transform(places, places)[0] == 3 and similarity_transform(places, places, [1, 1, 0])[0] == 2
    assert similarity_transform(places, 1 - places)[0] == 0  # upside down
    assert similarity_transform(np.zeros((3, 2)), places)[0] == 0  # all in one place: no scale


def test_reranking_puts_the_same_arrangement_first_and_leaves_the_tail():
    draw = np.random.default_rng(0)
    here = draw.uniform(0, 1, (6, 2))
    places = np.stack([draw.uniform(0, 1, (6, 2)), here * 1.2 + 0.1, draw.uniform(0, 1, (6, 2)), here])
    descriptors = torch.ones(4, 6, 3)
    found = rerank([np.array([0, 2, 1, 3])], places, descriptors, here[None], descriptors[:1], top=3)
    assert found[0, 0] == 1 and found[0, 3] == 3
    unlike = descriptors.clone()
    unlike[1] = -1  # the arrangement is the same, the parts are not
    assert rerank([np.array([0, 2, 1, 3])], places, unlike, here[None], descriptors[:1], top=3)[0, 0] != 1


def test_cells_are_matched_with_those_they_are_mutually_nearest_to():
    cosines = np.random.default_rng(0).normal(size=(7, 9))
    expected = [(i, j) for i in range(7) for j in range(9) if cosines[i, j] == cosines[i].max() == cosines[:, j].max()]
    assert list(zip(*geometry.mutually_nearest(cosines))) == expected
    draw = np.random.default_rng(1)
    here, shown = draw.uniform(0, 1, (12, 2)), some_codes(12, 8)
    shuffle = draw.permutation(12)
    places = np.stack([draw.uniform(0, 1, (12, 2)), 0.8 * here[shuffle] + 0.1])  # the second shows the query's cells, in another order
    descriptors = torch.stack([shown, shown[torch.from_numpy(shuffle)]])
    order = [np.array([0, 1])]
    assert rerank(order, places, descriptors, here[None], shown[None], mutual=True)[0].tolist() == [1, 0]
    assert rerank(order, places[[0, 0]], descriptors, here[None], shown[None])[0].tolist() == [0, 1]


# ---- whitening by pairs ----


def test_pair_whitening_is_its_formula():
    codes, pairs = some_codes(60, 6), np.random.default_rng(1).integers(0, 60, (40, 2))
    z = unit_rows(codes)
    apart = z[pairs[:, 0]] - z[pairs[:, 1]]
    within = apart.T @ apart / 40
    within += 0.1 * np.trace(within) / 6 * np.eye(6)
    values, vectors = np.linalg.eigh(within)
    y = (z - z.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T  # the symmetric root: another one only turns y
    strongest = np.linalg.svd(y, full_matrices=False)[2][:3]
    expected = unit_rows(y @ strongest.T)
    found = PairWhitening(3).fit(codes, pairs).transform(codes).numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)  # directions may have either sign


def test_pair_whitening_silences_what_pairs_differ_in():
    draw = np.random.default_rng(0)
    kind, noise = np.repeat(draw.normal(size=(30, 3)), 2, axis=0), 4 * draw.normal(size=(60, 3))
    codes, labels = torch.from_numpy(np.hstack([kind, noise])).float(), np.repeat(np.arange(30), 2)
    pairs = np.arange(60).reshape(30, 2)
    whitened = PairWhitening(3, 0.01).fit(codes[:40], pairs[:20]).transform(codes)
    assert evaluate(whitened[40:], labels[40:])["mAP"] > evaluate(codes[40:], labels[40:])["mAP"] + 20
    with pytest.raises(ValueError, match="expected pairs"):
        PairWhitening().fit(codes, np.zeros((0, 2), int))


@given(n=st.integers(3, 20), k=st.integers(1, 4), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_mutual_neighbours_choose_each_other(n, k, seed):
    codes, k = some_codes(n, 3, seed), min(k, n - 1)
    z = unit_rows(codes)
    near = [sorted((j for j in range(n) if j != i), key=lambda j: -(z[i] @ z[j]))[:k] for i in range(n)]
    expected = [[i, j] for i in range(n) for j in range(i + 1, n) if j in near[i] and i in near[j]]
    assert mutual_neighbours(codes, k).tolist() == expected


# ---- the compressed index ----


def clustered(n, d, seed=0):
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(60, d))
    return torch.from_numpy(centres[draw.integers(0, 60, n)] + 0.5 * draw.normal(size=(n, d))).float()


def recall(found, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth)])


def test_a_compressed_index_finds_most_and_looking_again_finds_more():
    codes, queries = clustered(3000, 32), clustered(60, 32, 1)
    truth = Index(codes).search(queries, 10)[1]
    plain = recall(Index(codes, "ivfpq", cells=30, probes=10, again=0).search(queries, 10)[1], truth)
    again = recall(Index(codes, "ivfpq", cells=30, probes=10).search(queries, 10)[1], truth)
    assert plain > 0.3 and again > plain + 0.1 and again > 0.85
    small, whole = Index(codes, "ivfpq", cells=30, again=0), Index(codes)
    assert len(small) == 3000 and 3000 * 32 * 4 <= whole.bytes < 3000 * 32 * 4 + 1000 and 3000 * 16 < small.bytes < whole.bytes / 2


def test_a_compressed_index_needs_pieces_that_fit():
    with pytest.raises(ValueError, match="pieces that divide 32"):
        Index(clustered(300, 32), "ivfpq", pieces=5)
    with pytest.raises(ValueError, match="256 codes or more"):
        Index(clustered(100, 32), "ivfpq")


def test_a_wider_search_of_the_graph_finds_more():
    codes, queries = some_codes(3000, 24), some_codes(80, 24, 1)
    truth = Index(codes).search(queries, 10)[1]
    found = [recall(Index(codes, "hnsw", links=8, width=width).search(queries, 10)[1], truth) for width in (10, 200)]
    assert found[0] + 0.05 < found[1]


def test_names_of_the_package():
    for name in retrieval.__all__:
        assert getattr(retrieval, name) is not None
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        retrieval.nothing
