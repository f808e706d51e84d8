"""Search and the measures of a ranking, against sorting by hand and the definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from partlib.retrieval import Index, average_precision, evaluate, precision_at, recall_at, unit


def some_codes(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def cosine(a, b):
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b)) / lengths if lengths else 0.0


def ranked(query, codes):
    """Cosines with all codes, and the codes' numbers, nearest first; equally near ones in their order."""
    cosines = [cosine(query, code) for code in codes]
    order = sorted(range(len(codes)), key=lambda i: -cosines[i])
    return [cosines[i] for i in order], order


# ---- the index ----


@given(n=st.integers(1, 40), d=st.integers(2, 6), m=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_exact_search_is_sorting_by_cosine(n, d, m, seed):
    codes, queries = some_codes(n, d, seed) * 7, some_codes(m, d, seed + 1) / 3
    k = min(n, 5)
    cosines, numbers = Index(codes).search(queries, k)
    assert cosines.shape == numbers.shape == (m, k) and len(Index(codes)) == n
    for i in range(m):
        expected_cosines, expected = ranked(queries[i].tolist(), codes.tolist())
        np.testing.assert_allclose(cosines[i], expected_cosines[:k], atol=1e-5)
        np.testing.assert_array_equal(numbers[i], expected[:k])


def test_a_single_query_gives_a_single_answer():
    codes = some_codes(20, 4)
    cosines, numbers = Index(codes).search(codes[7], 3)
    together = Index(codes).search(codes, 3)
    assert cosines.shape == numbers.shape == (3,) and numbers[0] == 7 and cosines[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(numbers, together[1][7])


def test_length_does_not_matter_and_codes_are_left_as_they_are():
    codes = some_codes(30, 5)
    kept = codes.clone()
    scaled = Index(codes * torch.rand(30, 1).add(0.1)).search(codes.numpy() * 4, 6)
    plain = Index(codes).search(codes, 6)
    np.testing.assert_array_equal(scaled[1], plain[1])
    np.testing.assert_allclose(scaled[0], plain[0], atol=1e-6)
    assert torch.equal(codes, kept)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_codes_of_zeros_are_equally_far_from_all(kind):
    codes = torch.cat([some_codes(5, 4), torch.zeros(3, 4)])
    cosines = Index(codes, kind).search(torch.zeros(1, 4), 4)[0]
    assert (cosines == 0).all()
    cosines, numbers = Index(codes).search(codes[:1], 8)
    assert sorted(numbers[0]) == list(range(8)) and (cosines[0][np.isin(numbers[0], [5, 6, 7])] == 0).all()
    np.testing.assert_array_equal(unit(torch.zeros(2, 3)), np.zeros((2, 3)))


def test_a_grid_searched_in_every_cell_is_exact():
    codes, queries = some_codes(500, 8), some_codes(20, 8, seed=1)
    exact = Index(codes).search(queries, 10)
    for cells in (1, 25, 500):
        found = Index(codes, kind="ivf", cells=cells, probes=cells).search(queries, 10)
        np.testing.assert_array_equal(found[1], exact[1])
        np.testing.assert_allclose(found[0], exact[0], atol=1e-6)


@pytest.mark.parametrize("options", [{"kind": "hnsw"}, {"kind": "ivf", "cells": 40, "probes": 15}])
def test_approximate_search_finds_most(options):
    codes, queries = some_codes(2000, 12), some_codes(100, 12, seed=1)
    exact, found = Index(codes).search(queries, 10)[1], Index(codes, **options).search(queries, 10)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found)]) > 0.9


def test_more_probes_find_more():
    codes, queries = some_codes(1000, 12), some_codes(100, 12, seed=1)
    exact = Index(codes).search(queries, 10)[1]
    shares = [
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, Index(codes, "ivf", cells=50, probes=probes).search(queries, 10)[1])])
        for probes in (1, 5, 50)
    ]
    assert shares[0] < shares[1] < shares[2] == 1


def test_what_an_approximate_index_does_not_find_is_minus_one():
    codes = torch.cat([torch.eye(2).repeat(10, 1), -torch.eye(2).repeat(10, 1)])
    numbers = Index(codes, kind="ivf", cells=4, probes=1).search(codes[0], 40)[1]
    found = numbers[numbers >= 0]
    assert set(range(0, 20, 2)) <= set(found) and len(set(found)) == len(found) < 40  # those like the query, never all four directions
    assert numbers[len(found) :].tolist() == [-1] * (40 - len(found))


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_one_code_and_no_queries(kind):
    index = Index(torch.ones(1, 3), kind)
    assert index.search(torch.ones(3), 1)[1].tolist() == [0]
    assert index.search(torch.zeros(0, 3), 1)[1].shape == (0, 1)


# ---- measures of one ranking ----


def at_ranks(ranks, n):
    return np.isin(np.arange(n), ranks)


def precision(relevant, k):
    return sum(relevant[:k]) / k


def ap_sum(relevant):
    right = [r + 1 for r in range(len(relevant)) if relevant[r]]
    return sum(precision(relevant, rank) for rank in right) / len(right)


def ap_trapezoid(relevant):
    """The area under the polygon of precision against recall, from precision 1 at recall 0."""
    area, recall_before, precision_before = 0.0, 0.0, 1.0
    for rank in range(1, len(relevant) + 1):
        recall, now = sum(relevant[:rank]) / sum(relevant), precision(relevant, rank)
        area += (recall - recall_before) * (now + precision_before) / 2
        recall_before, precision_before = recall, now
    return area


@given(relevant=st.lists(st.booleans(), min_size=1, max_size=30))
def test_average_precision_is_its_definition(relevant):
    if not any(relevant):
        assert math.isnan(average_precision(relevant)) and math.isnan(average_precision(relevant, "trapezoid"))
        return
    assert average_precision(relevant) == pytest.approx(ap_sum(relevant), abs=1e-12)
    assert average_precision(relevant, "trapezoid") == pytest.approx(ap_trapezoid(relevant), abs=1e-12)
    scores = -np.arange(len(relevant))  # no ties
    assert average_precision(np.array(relevant)) == pytest.approx(average_precision_score(relevant, scores), abs=1e-12)


def test_the_two_variants_differ_on_the_known_example():
    relevant = at_ranks([0, 3, 5, 20], 30)
    assert round(average_precision(relevant, "trapezoid"), 4) == 0.5092
    assert round(average_precision(relevant, "sum"), 4) == 0.5476


@pytest.mark.parametrize(
    ("relevant", "by_sum", "by_trapezoid"),
    [
        ([1, 1, 1], 1, 1),
        ([1, 0, 0], 1, 1),  # only the first
        ([0, 0, 1], 1 / 3, 1 / 6),  # only the last
        ([0, 1, 1], 7 / 12, ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2),
        ([1], 1, 1),
        ([0, 1], 1 / 2, 1 / 4),
    ],
)
def test_average_precision_by_hand(relevant, by_sum, by_trapezoid):
    relevant = np.array(relevant, dtype=bool)
    assert average_precision(relevant) == pytest.approx(by_sum)
    assert average_precision(relevant, "trapezoid") == pytest.approx(by_trapezoid)


@given(relevant=st.lists(st.booleans(), min_size=1, max_size=20), data=st.data())
def test_precision_and_recall_at_k_are_counted(relevant, data):
    k = data.draw(st.integers(1, len(relevant)))
    assert precision_at(np.array(relevant), k) == pytest.approx(precision(relevant, k))
    if any(relevant):
        assert recall_at(np.array(relevant), k) == (1 if True in relevant[:k] else 0)
    else:
        assert math.isnan(recall_at(np.array(relevant), k))


@given(relevant=st.lists(st.booleans(), min_size=1, max_size=20), wrong=st.integers(0, 10))
def test_wrong_answers_after_the_last_right_one_change_nothing(relevant, wrong):
    if any(relevant):
        for variant in ("sum", "trapezoid"):
            assert average_precision(relevant + [False] * wrong, variant) == pytest.approx(average_precision(relevant, variant))


# ---- a whole set of queries ----


def measured(rankings, ks, ap):
    """Means in percent over the rankings that hold a right answer."""
    counted = [r for r in rankings if any(r)]
    out = {"mAP": 100 * sum(map(ap, counted)) / len(counted), "queries": len(counted)}
    for k in ks:
        out[f"P@{k}"] = 100 * sum(precision(r, k) for r in counted) / len(counted)
        out[f"R@{k}"] = 100 * sum(any(r[:k]) for r in counted) / len(counted)
    return out


def leave_one_out(codes, labels):
    rankings = []
    for i in range(len(codes)):
        others = [j for j in range(len(codes)) if j != i]
        order = ranked(codes[i], [codes[j] for j in others])[1]
        rankings.append([labels[others[j]] == labels[i] for j in order])
    return rankings


@pytest.mark.parametrize(("variant", "ap"), [("sum", ap_sum), ("trapezoid", ap_trapezoid)])
@given(n=st.integers(4, 25), d=st.integers(2, 5), c=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_leave_one_out_is_a_double_loop(variant, ap, n, d, c, seed):
    codes, labels = some_codes(n, d, seed), np.random.default_rng(seed).integers(0, c, n)
    rankings = leave_one_out(codes.tolist(), labels.tolist())
    if any(map(any, rankings)):
        assert evaluate(codes, labels, ks=(1, 3), variant=variant) == pytest.approx(measured(rankings, (1, 3), ap), abs=1e-9)
    else:
        with pytest.raises(ValueError, match="no query has any right answer"):
            evaluate(codes, labels)


def test_more_queries_than_are_asked_at_once():
    codes, labels = some_codes(600, 4), np.random.default_rng(0).integers(0, 5, 600)
    similarity = unit(codes).astype(np.float64) @ unit(codes).astype(np.float64).T
    rankings = []
    for i in range(600):
        order = [j for j in np.argsort(-similarity[i], kind="stable") if j != i]
        rankings.append((labels[order] == labels[i]).tolist())
    expected = measured(rankings, (1, 10), lambda r: average_precision_score(r, -np.arange(599)))
    assert evaluate(codes, labels, ks=(1, 10)) == pytest.approx(expected, abs=1e-4)


@given(n=st.integers(2, 25), m=st.integers(1, 10), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_queries_against_a_database(n, m, seed):
    draw = np.random.default_rng(seed)
    codes, queries = some_codes(n, 4, seed), some_codes(m, 4, seed + 1)
    labels, query_labels = draw.integers(0, 4, n), draw.integers(0, 6, m)  # some queries have no right answer
    query_labels[0] = labels[0]
    rankings = [[labels[j] == own for j in ranked(query, codes.tolist())[1]] for query, own in zip(queries.tolist(), query_labels)]
    found = evaluate(codes, labels, queries, query_labels, ks=(1, 2))
    assert found == pytest.approx(measured(rankings, (1, 2), ap_sum), abs=1e-9)


def test_queries_without_a_right_answer_do_not_count():
    codes = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0]])
    found = evaluate(codes, [0, 0, 1, 2])
    assert found == {"mAP": 100, "P@1": 100, "R@1": 100, "queries": 2}


def test_a_query_finds_its_duplicates_but_not_itself():
    # The first three codes are one and the same; the label of the third differs.
    codes = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    found = evaluate(codes, [0, 0, 1, 1], ks=(1,))
    # 0 ranks 1, 2, 3: right, wrong, wrong. 1 ranks 0, 2, 3. 2 ranks 0, 1, 3: its one right answer is last. 3: 0, 1, 2, likewise.
    assert found == pytest.approx({"mAP": 100 * (1 + 1 + 1 / 3 + 1 / 3) / 4, "P@1": 50, "R@1": 50, "queries": 4})


def test_equally_near_codes_stay_in_their_order():
    # Directions at right angles: cosines are exactly 0 or 1, and most are ties.
    draw = np.random.default_rng(0)
    kinds, labels = draw.integers(0, 4, 40), draw.integers(0, 3, 40)
    codes = torch.eye(4)[kinds]
    assert evaluate(codes, labels) == pytest.approx(measured(leave_one_out(codes.tolist(), labels.tolist()), (1,), ap_sum))
    collapsed = evaluate(torch.ones(40, 3), labels)
    assert collapsed == pytest.approx(measured(leave_one_out([[1, 1, 1]] * 40, labels.tolist()), (1,), ap_sum))


def test_names_of_classes_order_of_photographs_and_length_of_codes_do_not_matter():
    draw = np.random.default_rng(0)
    codes, labels = some_codes(50, 6), draw.integers(0, 4, 50)
    expected, order = evaluate(codes, labels, ks=(1, 5)), draw.permutation(50)
    for found in (
        evaluate(codes, np.array([7, 0, 3, 12])[labels], ks=(1, 5)),
        evaluate(codes[order], labels[order], ks=(1, 5)),
        evaluate(codes * torch.rand(50, 1).add(0.5), labels, ks=(1, 5)),
        evaluate(codes.numpy(), labels.tolist(), ks=(1, 5)),
        evaluate(codes.double(), torch.from_numpy(labels), ks=(1, 5)),
    ):
        assert found == pytest.approx(expected)


def test_one_class_is_all_right_and_codes_of_the_class_are_perfect():
    assert evaluate(some_codes(10, 3), np.zeros(10, int), ks=(9,)) == {"mAP": 100, "P@9": 100, "R@9": 100, "queries": 10}
    labels = np.arange(12) % 3
    assert evaluate(torch.eye(3)[labels], labels, variant="trapezoid")["mAP"] == 100


def test_random_codes_are_near_chance():
    labels = np.repeat(np.arange(4), 50)
    assert abs(evaluate(some_codes(200, 20), labels)["mAP"] - 25) < 4
