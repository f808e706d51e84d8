"""Views of photographs: mirrored and cropped, the same each time, never taken for the photographs themselves."""

import numpy as np
import pytest
from PIL import ImageOps

from partlib import data


@pytest.fixture(scope="module")
def photos():
    return data.toy_birds(6, classes=3, size=64)


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_mirrored_is_from_left_to_right(photos):
    views = data.mirrored(photos)
    assert all(same(views[i], ImageOps.mirror(photos[i])) for i in range(6))
    assert not same(views[0], photos[0])


def test_crops_are_the_same_each_time_and_in_any_selection(photos):
    views = data.cropped(photos, seed=3)
    assert all(same(views[[4, 1]][k], views[i]) for k, i in enumerate((4, 1)))
    assert same(data.cropped(photos[[4]], seed=3)[0], views[4])
    assert not all(same(views[i], data.cropped(photos, seed=4)[i]) for i in range(6))


def test_crops_keep_their_share_of_the_picture(photos):
    for least in (0.3, 1.0):
        shares = [np.prod(data.cropped(photos, least, seed)[i].size) / 64**2 for seed in range(20) for i in range(6)]
        assert min(shares) > least * 0.75 and max(shares) <= 1  # a long shape is cut at the picture's sides
        assert least == 1 or min(shares) < 0.5


def test_a_view_has_a_cache_of_its_own(photos):
    prints = {views.fingerprint for views in (photos, data.mirrored(photos), data.cropped(photos), data.cropped(photos, seed=1))}
    assert len(prints) == 4
    assert data.mirrored(photos).fingerprint == data.mirrored(photos).fingerprint


def test_labels_and_split_stay_and_what_lies_elsewhere_now_does_not(photos):
    views = data.mirrored(photos)
    assert (views.labels == photos.labels).all() and (views.train == photos.train).all()
    assert views.keypoints is None and views.boxes is None and views.read_mask is None


def test_an_impossible_share_is_refused(photos):
    with pytest.raises(ValueError, match="share of the picture's area"):
        data.cropped(photos, least=0)
