"""Toy birds: pictures that depend on nothing but their number, true parts, and changes of one thing only."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partlib.data import Photos, toy_birds
from partlib.data.bird_parts import COLOURS, PARTS
from partlib.data.bird_scene import ABSENT, COVERED, FEWEST, FINE, NAMES, Backdrop, Scene

some_scene = st.builds(
    lambda classes, size, seed, i: toy_birds(i + 1, classes, size, seed).scene(i),
    classes=st.integers(1, 60), size=st.integers(32, 96), seed=st.integers(0, 2**40), i=st.integers(0, 300),
)  # fmt: skip
some_part = st.sampled_from(NAMES)


def pixels(scene):
    return np.asarray(scene.render())


@pytest.fixture(scope="module")
def birds():
    return toy_birds(60, classes=6, size=64)


# ---- which picture is where ----


def test_a_picture_is_the_same_whatever_was_asked_before(birds):
    forwards = [birds[i].tobytes() for i in range(10)]
    again = toy_birds(60, classes=6, size=64)
    assert [again[i].tobytes() for i in reversed(range(10))] == forwards[::-1]
    assert len(set(forwards)) == 10


def test_a_picture_does_not_depend_on_how_many_there_are(birds):
    more = toy_birds(1000, classes=6, size=64)
    assert more[57].tobytes() == birds[57].tobytes()
    for what in ("names", "stamps", "labels", "split"):
        assert list(getattr(more, what)[:60]) == list(getattr(birds, what))
    assert more.scene(57) == birds.scene(57)
    assert np.array_equal(more.attributes, birds.attributes)


@pytest.mark.parametrize("other", [{"classes": 7}, {"size": 65}, {"seed": 1}])
def test_stamps_name_everything_that_a_picture_depends_on(birds, other):
    others = toy_birds(**{"n": 60, "classes": 6, "size": 64, "seed": 0} | other)
    assert not set(others.stamps) & set(birds.stamps)
    assert others.fingerprint != birds.fingerprint
    assert len(set(birds.stamps)) == 60
    assert toy_birds(60, 6, 64, 0).fingerprint == birds.fingerprint


@given(classes=st.integers(1, 200), rounds=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_labels_and_split_are_balanced(classes, rounds):
    photos = toy_birds(2 * rounds * classes, classes)
    for indices in (photos.train, photos.test):
        assert np.array_equal(np.bincount(photos.labels[indices], minlength=classes), np.full(classes, rounds))
    assert len(photos.classes) == classes == len(set(photos.classes))


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(Scene, "_paint", lambda self: pytest.fail("a bird was drawn"))
    photos = toy_birds(5000, classes=200)
    assert len(photos[photos.test]) == 2400 and "200 classes" in repr(photos)


# ---- classes ----


@given(classes=st.integers(2, 200), seed=st.integers(0, 2**64))
@settings(max_examples=25, deadline=None)
def test_classes_are_distinct_and_each_has_a_near_relation(classes, seed):
    table = toy_birds(1, classes, seed=seed).attributes
    assert table.shape == (classes, 7)
    assert (table >= 0).all() and (table < [len(part.variants) for part in PARTS.values()]).all()
    differing = (table[:, None] != table[None]).sum(axis=2)
    np.fill_diagonal(differing, 99)
    assert set(differing.min(axis=1)) <= {1, 2}


def test_variants_are_named(birds):
    names = birds.variants
    assert tuple(names) == birds.keypoint_names == NAMES
    assert names["beak"][0] == "short orange" and names["beak"][5] == "long black"
    assert all(len(set(names[part])) == len(names[part]) for part in NAMES)


@pytest.mark.parametrize("part", NAMES)
def test_any_two_variants_of_a_part_look_different(part):
    """By their mean absolute difference over the part's pixels; two equal ones would differ by 0."""
    at, size = NAMES.index(part), 96
    scene = replace(toy_birds(1, 1, size).scene(0), cover=None, missing=frozenset())
    variants = [
        replace(scene, variants=(*scene.variants[:at], v, *scene.variants[at + 1 :]))
        for v in range(len(PARTS[part].variants))
    ]
    pictures, masks = [pixels(s).astype(int) for s in variants], [s.part_masks()[at] for s in variants]
    for a, b in itertools.combinations(range(len(variants)), 2):
        either = masks[a] | masks[b]
        assert np.abs(pictures[a] - pictures[b])[either].mean() > 4, (PARTS[part].variants[a], PARTS[part].variants[b])


def test_the_parts_tell_the_classes_apart_and_nothing_else_does():
    """Two classes that differ in one part: the part's pixels do in most pictures, and elsewhere no byte does."""
    photos = toy_birds(400, classes=40, size=64)
    table = photos.attributes
    pairs = [
        (a, b, *np.flatnonzero(table[a] != table[b]))
        for a, b in itertools.combinations(range(40), 2)
        if (table[a] != table[b]).sum() == 1
    ]
    assert len(pairs) >= 10
    for a, b, at in pairs:
        differences = []
        for i in range(a, 400, 40):
            mine, other = photos.scene(i), replace(photos.scene(i), variants=tuple(table[b].tolist()))
            touched = (mine.coverage[at] > 0) | (other.coverage[at] > 0)
            before, after = pixels(mine).astype(int), pixels(other).astype(int)
            assert np.array_equal(before[~touched], after[~touched])
            differences.append(np.abs(before - after)[touched].mean() if touched.any() else 0)
        assert np.median(differences) > 4, (photos.classes[a], photos.classes[b], NAMES[at])


def test_chance_does_not_know_the_class():
    few, many = toy_birds(50, classes=3), toy_birds(50, classes=31)
    for i in range(50):
        assert replace(few.scene(i), variants=()) == replace(many.scene(i), variants=())


def test_parts_are_missing_and_covered_as_often_as_stated():
    scenes = [toy_birds(1, 1, 32, seed=5).flock.scene(i) for i in range(4000)]
    for part in NAMES:
        rate = np.mean([part in scene.missing for scene in scenes])
        assert abs(rate - ABSENT) < 4 * np.sqrt(ABSENT * (1 - ABSENT) / 4000)
    assert abs(np.mean([scene.cover is not None for scene in scenes]) - COVERED) < 4 * np.sqrt(0.25 / 4000)
    assert {scene.backdrop.kind for scene in scenes} == set(Backdrop.KINDS)


def test_most_parts_are_seen_in_most_pictures():
    visible = toy_birds(200, size=64).keypoints[:, :, 2].mean(axis=0)
    assert (visible > 0.85).all() and (visible < 1).all()


def test_birds_colours_occur_in_the_backdrops():
    seen = np.concatenate(
        [np.asarray(Backdrop(kind, seed).render(64)).reshape(-1, 3) for kind in Backdrop.KINDS for seed in range(40)]
    )
    for name, colour in COLOURS.items():
        assert (np.abs(seen.astype(int) - colour).max(axis=1) < 12).sum() > 20, name


# ---- the truth about a picture ----


@given(some_scene)
@settings(max_examples=40, deadline=None)
def test_masks_are_disjoint_and_keypoints_and_box_follow_them(scene):
    masks, mask = scene.part_masks(), scene.mask()
    assert scene.render().size == (scene.size, scene.size) and scene.render().mode == "RGB"
    assert masks.shape == (7, scene.size, scene.size) and masks.dtype == bool
    assert masks.sum(axis=0).max() <= 1
    assert not (masks.any(axis=0) & ~mask).any()
    for name, part, (x, y, visible) in zip(NAMES, masks, scene.keypoints()):
        assert visible == (part.sum() >= FEWEST)
        if name in scene.missing:
            assert not part.any()
        if visible:
            points = np.argwhere(part)
            far = np.linalg.norm(points - points.mean(axis=0), axis=1)
            assert part[int(y), int(x)]
            assert np.hypot(y - points[:, 0].mean(), x - points[:, 1].mean()) <= far.min() + 1e-9
    x0, y0, x1, y1 = scene.box().astype(int)
    outside = mask.copy()
    outside[y0:y1, x0:x1] = False
    assert not outside.any()
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@given(some_scene)
@settings(max_examples=15, deadline=None)
def test_coverage_counts_subpixels(scene):
    painted, _, shows = scene._paint()
    fine = np.array([[shows[stroke] for stroke in row] for row in np.asarray(painted)])
    shares = [(fine == what).reshape(scene.size, FINE, scene.size, FINE).mean(axis=(1, 3)) for what in range(8)]
    assert np.allclose(scene.coverage, shares, atol=1e-6)


@given(some_scene)
@settings(max_examples=15, deadline=None)
def test_what_is_in_front_only_hides(scene):
    covered, free = replace(scene, cover=7), replace(scene, cover=None)
    assert (covered.coverage <= free.coverage).all()
    assert not (covered.part_masks() & ~free.part_masks()).any()


def test_sizes_of_bird_and_parts(birds):
    """With every part away the body is left; and no part of a whole bird is tiny."""
    scene = replace(birds.scene(0), missing=frozenset(), cover=None)
    bare = scene
    for part in NAMES:
        bare = bare.without(part)
    assert not bare.part_masks().any() and bare.mask().any()
    assert 0.03 < scene.mask().mean() < 0.4
    assert (scene.part_masks().mean(axis=(1, 2)) > 0.003).all()


# ---- changes of one thing ----


@given(some_scene, some_part)
@settings(max_examples=40, deadline=None)
def test_without_changes_only_what_the_part_touches(scene, part):
    at, bare = NAMES.index(part), scene.without(part)
    touched = scene.coverage[at] > 0
    assert np.array_equal(pixels(scene)[~touched], pixels(bare)[~touched])
    assert not bare.coverage[at].any()
    assert bare.keypoints()[at, 2] == 0
    others = [k for k in range(8) if k != at]
    assert np.array_equal(scene.coverage[others][:, ~touched], bare.coverage[others][:, ~touched])
    assert (bare.coverage[others] >= scene.coverage[others]).all()  # what was behind shows
    assert bare.without(part) == bare


def test_without_really_takes_the_part_away(birds):
    for i, part in itertools.product(range(12), NAMES):
        scene = birds.scene(i)
        mask = scene.part_masks()[NAMES.index(part)]
        if mask.sum() >= FEWEST:
            assert np.abs(pixels(scene).astype(int) - pixels(scene.without(part)))[mask].mean() > 8


@given(some_scene, some_part, st.data())
@settings(max_examples=40, deadline=None)
def test_swap_changes_only_what_the_part_touches(scene, part, data):
    at, other = NAMES.index(part), data.draw(st.integers(0, len(scene.table) - 1))
    swapped = scene.swap(part, other)
    touched = (scene.coverage[at] > 0) | (swapped.coverage[at] > 0)
    assert np.array_equal(pixels(scene)[~touched], pixels(swapped)[~touched])
    assert swapped.variants[at] == scene.table[other, at]
    assert swapped.missing == scene.missing


def test_changed_pixels_lie_within_two_pixels_of_the_masks(birds):
    """How far a touched border reaches beyond the masks, on whole birds."""
    for i, part in itertools.product(range(20), NAMES):
        at, scene = NAMES.index(part), replace(birds.scene(i), cover=None)
        bare = scene.without(part)
        near = np.pad(scene.part_masks()[at], 2)
        near = np.lib.stride_tricks.sliding_window_view(near, (5, 5)).any(axis=(2, 3))
        changed = (pixels(scene) != pixels(bare)).any(axis=2)
        assert not (changed & ~near).any(), (i, part)


@given(some_scene)
@settings(max_examples=15, deadline=None)
def test_swap_to_the_own_class_is_the_identity(scene):
    label = next(c for c, row in enumerate(scene.table.tolist()) if tuple(row) == scene.variants)
    for part in NAMES:
        assert scene.swap(part, label) == scene
    assert np.array_equal(pixels(scene.swap("wing", label)), pixels(scene))


def test_swapping_every_part_makes_a_bird_of_the_other_class(birds):
    scene = birds.scene(0)
    for part in NAMES:
        scene = scene.swap(part, 4)
    assert scene == replace(birds.scene(0), variants=tuple(birds.attributes[4].tolist()))
    assert scene.without("tail").swap("tail", 0).part_masks()[NAMES.index("tail")].sum() == 0


def test_background_leaves_bird_and_light_alone(birds):
    for i, k in ((0, 1), (3, 8), (10, 11)):
        scene, changed = birds.scene(i), birds.scene(i).background(birds.scene(k))
        painted, _, _ = scene._paint()
        opaque = (np.asarray(painted) > 0).reshape(64, FINE, 64, FINE).all(axis=(1, 3))
        before, after = pixels(scene), pixels(changed)
        assert np.array_equal(before[opaque], after[opaque])
        assert (before != after)[~opaque].mean() > 0.5
        assert np.array_equal(scene.coverage, changed.coverage)
        assert changed.background(scene) == scene


# ---- as a set of photographs ----


def test_a_subset_keeps_scenes_masks_and_geometry(birds):
    whole = toy_birds(60, classes=6, size=64)
    chosen = whole.test[::3]
    early = whole[chosen]  # before the geometry of the whole is known, and after
    assert "keypoints" not in vars(early)
    keypoints, boxes = whole.keypoints, whole.boxes
    late = whole[chosen]
    assert keypoints.shape == (60, 7, 3) and boxes.shape == (60, 4)
    for part in (early, late):
        assert isinstance(part, Photos) and type(part) is type(whole)
        assert np.array_equal(part.keypoints, keypoints[chosen]) and np.array_equal(part.boxes, boxes[chosen])
        assert part.scene(2) == whole.scene(chosen[2])
        assert part[2].tobytes() == whole[int(chosen[2])].tobytes() == part.scene(2).render().tobytes()
        assert np.array_equal(part.part_masks(2), whole.part_masks(chosen[2]))
        assert np.array_equal(part.mask(2), whole.mask(chosen[2])) and np.array_equal(
            part.mask(2), part.scene(2).mask()
        )
        assert np.array_equal(part.attributes[part.labels[2]], part.scene(2).variants)
    twice = early[1:][[0, 2]]
    assert twice.names == [whole.names[chosen[1]], whole.names[chosen[3]]]
    assert np.array_equal(twice.boxes, boxes[chosen[[1, 3]]])


def test_a_set_travels_to_another_process(birds):
    copy = pickle.loads(pickle.dumps(birds))
    assert copy[5].tobytes() == birds[5].tobytes() and copy.fingerprint == birds.fingerprint


@pytest.mark.parametrize(
    "mistake, error, says",
    [
        (lambda b: toy_birds(0), ValueError, "n is 0, but must be at least 1"),
        (lambda b: toy_birds(classes=0), ValueError, "classes is 0"),
        (lambda b: toy_birds(size=8), ValueError, "size is 8, but must be at least 32"),
        (lambda b: toy_birds(seed=-1), ValueError, "seed is -1"),
        (lambda b: b.scene(0).without("nose"), ValueError, "no 'nose': its parts are beak, crown"),
        (lambda b: b.scene(0).swap("foot", 1), ValueError, "no 'foot'"),
        (lambda b: b.scene(0).swap("beak", 6), IndexError, "no class 6: the 6 classes are numbered 0 to 5"),
        (lambda b: b.scene(0).swap("beak", -1), IndexError, "no class -1"),
        (lambda b: b.scene(0).background("sky"), TypeError, r"photos.scene\(3\), not 'sky'"),
    ],
)
def test_mistakes_are_named(birds, mistake, error, says):
    with pytest.raises(error, match=says):
        mistake(birds)
