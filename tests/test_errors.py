"""What readers get wrong: each is answered by one sentence that says what was given and what to do."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import partlib as pl
from partlib.clustering import KMeans, align, contingency, effective_number, hierarchical
from partlib.features import Maps
from partlib.whitening import Moments, PCAWhitening, lda_filters, moments

maps = torch.rand(2, 8, 4, 5)
on_disk = Maps(np.zeros((5, 8, 4, 5), np.float16), np.arange(5))
codes = torch.rand(6, 4)
labels = np.array([0, 1, 0, 1, 0, 1])
picture = Image.new("RGB", (32, 32))
spoiled = codes.clone()
spoiled[[2, 4], 1] = torch.tensor([float("nan"), float("inf")])
whole = torch.tensor([[0, 0, 5, 4]])


def few_pictures(path):
    picture.save(path / "one.png")
    return pl.data.folder(path)


POOLINGS = {
    "gap": pl.encoding.gap, "mac": pl.encoding.mac, "spoc": pl.encoding.spoc, "gem": pl.encoding.gem, "rmac": pl.encoding.rmac,
    "rmac_regions": pl.encoding.rmac_regions, "pool": lambda m: pl.regions.pool(m, whole),
    "class_maps": lambda m: pl.cam.class_maps(m, torch.nn.Linear(8, 3)),
}  # fmt: skip
TAKE_VECTORS = {
    "moments": moments, "whitening": PCAWhitening().fit, "lda": lambda x: lda_filters(x, moments(codes)), "k-means": KMeans(2).fit,
    "predict": lambda x: KMeans(2).fit(codes).predict(x), "hierarchical": lambda x: hierarchical(x, 2, 2), "index": pl.retrieval.Index,
    "search": lambda x: pl.retrieval.Index(codes).search(x, 1), "evaluate": lambda x: pl.retrieval.evaluate(x, labels),
    "knn": lambda x: pl.evaluation.knn_accuracy(x, labels, codes, labels),
    "probe": lambda x: pl.evaluation.linear_probe(codes, labels, x, labels),
}  # fmt: skip
TAKE_LABELS = {
    "evaluate": lambda y: pl.retrieval.evaluate(codes, y),
    "query labels": lambda y: pl.retrieval.evaluate(codes, labels, codes, y),
    "knn": lambda y: pl.evaluation.knn_accuracy(codes, y, codes, labels, k=1),
    "knn test": lambda y: pl.evaluation.knn_accuracy(codes, labels, codes, y, k=1),
    "probe": lambda y: pl.evaluation.linear_probe(codes, y, codes, labels),
    "probe test": lambda y: pl.evaluation.linear_probe(codes, labels, codes, y),
    "agreement": lambda y: pl.evaluation.agreement(labels, y),
    "contingency": lambda y: contingency(labels, y),
    "align": lambda y: align(labels, y),
}
OTHER_DIMENSION = {
    "moments": lambda x: moments([codes, x]), "whitening": PCAWhitening().fit(codes).transform, "lda": lambda x: lda_filters(x, moments(codes)),
    "predict": KMeans(2).fit(codes).predict, "search": lambda x: pl.retrieval.Index(codes).search(x, 1),
    "search for one": lambda x: pl.retrieval.Index(codes).search(x[0], 1),
    "evaluate": lambda x: pl.retrieval.evaluate(codes, labels, x, labels),
    "knn": lambda x: pl.evaluation.knn_accuracy(codes, labels, x, labels, k=1),
    "probe": lambda x: pl.evaluation.linear_probe(codes, labels, x, labels),
}  # fmt: skip


def answer(kind, mistake):
    """The sentence with which a mistake is answered."""
    with pytest.raises(kind) as error:
        mistake()
    message = str(error.value)
    assert type(error.value) is kind, f"{type(error.value).__name__}: {message}"
    assert "\n" not in message and len(message) < 400
    assert not message.endswith(".") and ". " not in message.replace("… ", ""), "more than one sentence"
    return message


def each(table):
    return pytest.mark.parametrize("call", table.values(), ids=table)


# ---- files, networks, layers ----


def test_a_wrong_path(tmp_path):
    said = answer(FileNotFoundError, lambda: pl.data.folder(tmp_path / "holliday"))
    assert "holliday" in said and "give the folder of your pictures" in said
    picture.save(tmp_path / "one.png")
    said = answer(NotADirectoryError, lambda: pl.data.folder(tmp_path / "one.png"))
    assert "one.png is a file: give the folder it lies in" in said


def test_an_empty_folder(tmp_path):
    assert str(tmp_path) in answer(ValueError, lambda: pl.data.folder(tmp_path))


def test_a_wrong_name_of_a_network():
    said = answer(ValueError, lambda: pl.Backbone("resnet_50"))
    assert "'resnet_50'" in said and "resnet50" in said and "partlib.backbones.PUBLISHED" in said


def test_a_wrong_layer_or_stride():
    said = answer(ValueError, lambda: pl.Backbone(layer="_blocks.99", size=64, pretrained=False))
    assert "'_blocks.99'" in said and "near it: _blocks." in said and ".layers" in said
    said = answer(ValueError, lambda: pl.Backbone(layer=7, size=64, pretrained=False))
    assert "no maps of stride 7; it has 2, 4, 8, 16, 32" in said


def test_what_a_backbone_takes():
    backbone = pl.Backbone(size=64, pretrained=False)
    said = answer(ValueError, lambda: backbone(picture))
    assert "not Image" in said and "backbone.prepare(picture)[None]" in said
    said = answer(ValueError, lambda: backbone(backbone.prepare(picture)))
    assert "not (3, 64, 64)" in said and "backbone.prepare(picture)[None]" in said
    assert "read_picture(path) reads one" in answer(TypeError, lambda: backbone.prepare("one.png"))


def test_extraction_in_the_wrong_order_or_of_no_set(tmp_path):
    photos = few_pictures(tmp_path)
    said = answer(TypeError, lambda: pl.extract(photos, None))
    assert "a Backbone and Photos, in this order, not Photos, NoneType" in said and "partlib.data.folder(path)" in said


def test_a_name_that_partlib_does_not_have():
    said = answer(AttributeError, lambda: pl.retreival)
    assert "'retreival'" in said and "retrieval" in said.split("it has")[1]


def test_a_photograph_or_a_map_that_is_not_there(tmp_path):
    assert "1 photographs: 3 is neither" in answer(IndexError, lambda: few_pictures(tmp_path)[3])
    assert "there are 5 maps" in answer(IndexError, lambda: on_disk[[7]])
    assert "no split into training and test" in answer(ValueError, lambda: few_pictures(tmp_path).train)


# ---- maps ----


@each(POOLINGS)
def test_pictures_where_maps_are_expected(call):
    for pictures in (torch.rand(2, 3, 32, 32), torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8), torch.rand(3, 32, 32)):
        said = answer(ValueError, lambda: call(pictures))
        assert str(tuple(pictures.shape)) in said and "looks like pictures" in said and "backbone(pictures) makes maps of them" in said
    assert "not Image: a Backbone makes maps of pictures" in answer(TypeError, lambda: call(picture))


@each(POOLINGS)
def test_maps_on_disk_where_a_tensor_is_expected(call):
    assert "not Maps: maps.tensor() or maps.batches() gives tensors" in answer(TypeError, lambda: call(on_disk))


@each(POOLINGS)
def test_one_map_codes_whole_numbers_and_maps_without_cells(call):
    said = answer(ValueError, lambda: call(maps[0]))
    assert "not one map (8, 4, 5): write maps[None]" in said
    assert "torch.float32 (6, 4)" in answer(ValueError, lambda: call(codes))
    assert "not torch.int64 (2, 8, 4, 5)" in answer(ValueError, lambda: call(maps.long()))
    said = answer(ValueError, lambda: call(maps[:, :, :0]))
    assert "(2, 8, 0, 5) have no cells" in said and "larger pictures" in said


def test_a_tensor_where_maps_on_disk_are_expected():
    said = answer(TypeError, lambda: pl.encode(maps, pl.encoding.gem))
    assert "not Tensor" in said and "gem(maps)" in said
    assert "no maps to encode" in answer(ValueError, lambda: pl.encode(on_disk[[]], pl.encoding.gap))


@pytest.mark.parametrize("p", [0, -1.0, torch.tensor([3.0, 4.0]), float("nan")])
def test_an_exponent_that_is_no_mean(p):
    assert "one number p > 0 (1 is the average)" in answer(ValueError, lambda: pl.encoding.gem(maps, p))


# ---- boxes ----


@pytest.mark.parametrize("box", [[0, 0, 6, 4], [0, 0, 5, 5], [-1, 0, 2, 2], [2, 2, 2, 3], [3, 1, 2, 2], [0, 0, 160, 128]])
def test_a_box_that_leaves_the_map_or_is_empty(box):
    said = answer(ValueError, lambda: pl.regions.pool(maps, torch.tensor([[0, 0, 1, 1], box])))
    assert f"box {box}" in said and "4 x 5 cells" in said and "regions.to_cells" in said


def test_boxes_of_another_shape_or_kind():
    for boxes in (whole[0], whole.expand(3, 1, 4), whole[:0], torch.zeros(2, 5, dtype=int)):
        said = answer(ValueError, lambda: pl.regions.pool(maps, boxes))
        assert str(tuple(boxes.shape)) in said and "(r, 4) or (2, r, 4)" in said
    assert "not floats: regions.to_cells" in answer(ValueError, lambda: pl.regions.pool(maps, whole.float()))
    assert "how='sum': regions are pooled by 'max' or 'mean'" in answer(ValueError, lambda: pl.regions.pool(maps, whole, how="sum"))


def test_windows_that_do_not_fit():
    assert "no window of sides (6, 7) fits a map of 4 x 5 cells" in answer(ValueError, lambda: pl.regions.windows(4, 5, sizes=(6, 7)))
    said = answer(ValueError, lambda: pl.regions.random_boxes(4, 5, 3, smallest=5))
    assert "smallest=5" in said and "take from 1 to 4" in said


# ---- vectors and codes ----


@each(TAKE_VECTORS)
def test_numbers_that_are_not_finite(call):
    said = answer(ValueError, lambda: call(spoiled))
    assert "2 of the 6" in said and "NaN or infinity (first: row 2)" in said and "leave them out" in said


def test_infinity_alone_is_named_too():
    infinite = torch.where(torch.arange(6)[:, None] == 3, -torch.inf, codes)
    assert "1 of the 6 vectors hold NaN or infinity (first: row 3)" in answer(ValueError, lambda: moments(infinite))


@each(TAKE_VECTORS)
def test_maps_or_labels_where_vectors_are_expected(call):
    said = answer(ValueError, lambda: call(torch.rand(6, 4, 3, 3)))
    assert "(n, d), not (6, 4, 3, 3): pool maps first" in said
    assert "of floats, not torch.int64" in answer(ValueError, lambda: call(torch.zeros(6, 4, dtype=int)))


def test_regions_where_vectors_are_expected():
    said = answer(ValueError, lambda: PCAWhitening().fit(torch.rand(6, 5, 4)))
    assert "(n, d), not (6, 5, 4)" in said and "regions.flatten(0, 1)" in said


@each(OTHER_DIMENSION)
def test_codes_of_another_dimension(call):
    said = answer(ValueError, lambda: call(torch.rand(6, 7)))
    assert {"4", "7"} <= set(re.findall(r"\d+", said)) and "dimensions" in said


def test_nothing_at_all():
    nothing = codes[:0]
    assert "at least 2 vectors, not 0" in answer(ValueError, lambda: PCAWhitening().fit(nothing))
    assert "no vectors yet: call update(x) first" in answer(ValueError, lambda: Moments().covariance)
    assert "no vectors yet: call update(x) first" in answer(ValueError, lambda: lda_filters(codes, Moments()))
    assert "3 clusters of no vectors at all" in answer(ValueError, lambda: KMeans(3).fit(nothing))
    assert "an index of no codes" in answer(ValueError, lambda: pl.retrieval.Index(nothing))
    assert "no query has any right answer" in answer(ValueError, lambda: pl.retrieval.evaluate(nothing, labels[:0]))
    for probe in (pl.evaluation.knn_accuracy, pl.evaluation.linear_probe):
        assert "6 training codes and 0 test codes" in answer(ValueError, lambda: probe(codes, labels, nothing, labels[:0]))
        assert "0 training codes and 6 test codes" in answer(ValueError, lambda: probe(nothing, labels[:0], codes, labels))
    assert "no labels to agree with" in answer(ValueError, lambda: pl.evaluation.agreement([], []))
    assert "no clusters to count" in answer(ValueError, lambda: effective_number([]))


def test_what_was_not_fitted():
    assert "call fit first" in answer(ValueError, lambda: PCAWhitening().transform(codes))
    assert "call fit first" in answer(ValueError, lambda: KMeans(2).predict(codes))


def test_nothing_to_whiten():
    said = answer(ValueError, lambda: PCAWhitening().fit(codes[:1].expand(9, 4)))
    assert "all 9 vectors are the same" in said and "different photographs" in said


# ---- numbers of things ----


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (lambda: KMeans(7).fit(codes), "7 clusters of 6 vectors"),
        (lambda: KMeans(0).fit(codes), "0 clusters of 6 vectors"),
        (lambda: KMeans(2.5).fit(codes), "2.5 clusters of 6 vectors"),
        (lambda: hierarchical(codes, 7, 2), "7 clusters of 6 vectors"),
        (lambda: pl.retrieval.Index(codes).search(codes, 7), "7 neighbours of 6 codes in the index"),
        (lambda: pl.retrieval.Index(codes).search(codes[0], 0), "0 neighbours of 6 codes in the index"),
        (lambda: pl.retrieval.Index(codes, "ivf", cells=7), "7 cells of 6 codes"),
        (lambda: pl.retrieval.Index(codes, "ivf", cells=0), "0 cells of 6 codes"),
        (lambda: pl.retrieval.Index(codes, "ivf", cells=3, probes=0), "0 probes of 3 cells"),
        (lambda: pl.retrieval.precision_at([True, False], 3), "3 answers of 2 ranked"),
        (lambda: pl.retrieval.recall_at([True, False], 3), "3 answers of 2 ranked"),
        (lambda: pl.retrieval.evaluate(codes, labels, ks=(6,)), "6 answers of 5 ranked"),  # without the query itself
        (lambda: pl.evaluation.knn_accuracy(codes, labels, codes, labels, k=9), "9 neighbours of 6 codes"),
        (lambda: PCAWhitening(dims=5).fit(codes), "5 dimensions of 4 directions that carry variance"),
        (lambda: PCAWhitening(dims=0).fit(codes), "0 dimensions of 4 directions that carry variance"),
        (lambda: PCAWhitening(dims=3).fit(codes[:3]), "3 dimensions of 2 directions that carry variance"),
    ],
)
def test_more_than_there_are(call, given):
    said = answer(ValueError, call)
    assert given in said and "take a whole number from 1 to" in said


def test_a_balance_that_cannot_be():
    assert "balance=0.9" in answer(ValueError, lambda: KMeans(2, balance=0.9).fit(codes))


@pytest.mark.parametrize(
    ("call", "choice"),
    [
        (lambda: pl.retrieval.Index(codes, kind="flat"), "kind='flat': an index is 'exact', 'ivf', 'ivfpq' or 'hnsw'"),
        (lambda: pl.retrieval.average_precision([True], "area"), "variant='area': average precision is 'sum' or 'trapezoid'"),
        (lambda: pl.retrieval.evaluate(codes, labels, variant="area"), "variant='area': average precision is 'sum' or 'trapezoid'"),
    ],
)
def test_a_choice_that_is_none(call, choice):
    assert choice in answer(ValueError, call)


# ---- labels ----


@each(TAKE_LABELS)
def test_labels_of_another_length(call):
    said = answer(ValueError, lambda: call(labels[:5]))
    assert "6 codes but" in said and "of shape (5,)" in said and "labels[photos.test]" in said
    assert "of shape (6, 1)" in answer(ValueError, lambda: call(labels[:, None]))


@each(TAKE_LABELS)
def test_a_set_without_labels(call):
    said = answer(ValueError, lambda: call(None))
    assert "these photographs have no" in said and "pass your own" in said


@each(TAKE_LABELS)
def test_names_fractions_and_negative_numbers_in_place_of_labels(call):
    for wrong in (np.array(list("abcdef")), labels / 2):
        said = answer(ValueError, lambda: call(wrong))
        assert f"whole numbers, not {wrong.dtype}" in said and "return_inverse=True" in said
    assert "3 of the 6 are negative" in answer(ValueError, lambda: call(labels - 1))


def test_queries_without_labels_of_their_own():
    assert "no query labels" in answer(ValueError, lambda: pl.retrieval.evaluate(codes, labels, codes))


def test_labels_that_teach_nothing():
    said = answer(ValueError, lambda: pl.retrieval.evaluate(codes, np.arange(6)))
    assert "no query has any right answer" in said and "labels of these codes" in said
    for wrong in (np.zeros(6, int), np.array([0, 0, 0, 1, 1, 2])):
        said = answer(ValueError, lambda: pl.evaluation.linear_probe(codes, wrong, codes, labels))
        assert "at least two classes and two training codes of each" in said


# ---- explanations ----


def test_a_layer_that_does_not_fit_the_maps():
    said = answer(ValueError, lambda: pl.cam.class_maps(maps, torch.nn.Linear(9, 3)))
    assert "takes 9 channels, the maps have 8" in said and "trained on these maps" in said
    said = answer(TypeError, lambda: pl.cam.class_maps(maps, None))
    assert "not NoneType" in said and "nn.Linear" in said


def test_a_box_of_what_is_no_map():
    for shape in ((1, 4, 5), (4,), (0, 4)):
        said = answer(ValueError, lambda: pl.cam.object_box(torch.zeros(shape)))
        assert str(shape) in said and "maps[0, c]" in said
    for bad in (float("nan"), float("inf")):
        assert "NaN or infinity" in answer(ValueError, lambda: pl.cam.object_box(torch.tensor([[1.0, bad]])))
    for threshold in (0, 1.2, -0.5):
        assert f"threshold={threshold}" in answer(ValueError, lambda: pl.cam.object_box(torch.ones(2, 2), threshold))
