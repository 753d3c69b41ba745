"""Similarities against loops over pairs, shapes against closed forms, the premise on made-up images."""

import dataclasses
import itertools
import json
import math
import signal
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from tokred.data import preprocessing, sources
from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.evaluation.metrics import interval, intervals
from tokred.models import zoo
from tokred.plots import svg
from tokred.studies.similarity import figures, premise, report
from tokred.studies.similarity.accumulator import BINS, EDGES, Accumulator, cosine
from tokred.studies.similarity.pairs import KINDS, Pairs
from tokred.studies.similarity.shape import modes, quantiles, shape, superiority
from tokred.studies.similarity.study import SENSES, Study, permute_patches, shuffle
from tokred.testing import tiny_vit

LAYERS = (1, 3)


# Oracles: plain loops over pairs.


def pairs_by_loops(rows, columns):
    """Every kind of pair, from its definition, as a set of (first, second)."""
    n = rows * columns
    found = {"adjacent": {(i, i + 1) for i in range(0, n - 1, 2)}}
    found["window"] = {
        pair for start in range(0, n - 3, 4) for pair in itertools.combinations(range(start, start + 4), 2)
    }
    found["all"] = set(itertools.combinations(range(n), 2))
    found["square"] = set()
    for r, c in itertools.product(range(0, rows - 1, 2), range(0, columns - 1, 2)):
        window = [r * columns + c, r * columns + c + 1, (r + 1) * columns + c, (r + 1) * columns + c + 1]
        found["square"] |= set(itertools.combinations(window, 2))
    found["vertical"] = {(i, i + columns) for i in range(n - columns)}
    return {name: pairs for name, pairs in found.items() if pairs}


def cosine_by_hand(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))


def tokens_after_attention(model, images, layer, features="residual"):
    """Patch tokens by timm's own modules, block by block, outside tokred."""
    with torch.inference_mode():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for block in model.blocks[: layer - 1]:
            x = block(x)
        attention = model.blocks[layer - 1].attn(model.blocks[layer - 1].norm1(x))
        x = x + attention if features == "residual" else attention
    return x[:, model.num_prefix_tokens :].numpy()


# A study of tensors in place of files.


class Tensors(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __getitem__(self, index):
        image = Image.new("RGB", (1, 1))
        image.tensor = self.images[index]
        return image, 0


def study(model, images, groups=None, layers=LAYERS, features="residual", **settings):
    """A `Study` of images [B, 3, H, W] that are already prepared."""
    groups = np.arange(len(images)) if groups is None else groups
    source = sources.Source(Tensors(images), "made", "test", "0" * 64, groups, None)
    loaded = zoo.Loaded(model, "tiny", "random weights", "1" * 64)
    preparation = preprocessing.Preparation(lambda image: image.tensor, images.shape[-1], 1.0, "bicubic")
    with (
        mock.patch.object(sources, "open_source", return_value=source),
        mock.patch.object(zoo, "load_for", return_value=loaded),
        mock.patch.object(preprocessing, "prepare", return_value=preparation),
    ):
        return Study(Config("tiny", device="cpu", precision="fp32", **settings), layers, features)


def noise(n=5, height=48, width=48, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


# Pairs


@given(st.integers(1, 7), st.integers(1, 7))
def test_pairs_are_those_of_their_definitions(rows, columns):
    pairs = Pairs.of(rows, columns)
    expected = pairs_by_loops(rows, columns)
    assert set(pairs.kinds) == set(expected)
    for name, (first, second) in pairs.kinds.items():
        found = list(zip(first.tolist(), second.tolist(), strict=True))
        assert len(found) == len(set(found))  # none twice
        assert set(found) == expected[name]
    for i, j in itertools.product(range(rows * columns), repeat=2):
        apart = abs(i // columns - j // columns) * columns + abs(i % columns - j % columns)
        assert pairs.apart[i * rows * columns + j] == apart


def test_adjacent_pairs_are_those_that_lotm_compares():
    """Whatever LoTM merges when it merges all that it may."""
    from tokred.core.registry import get
    from tokred.testing import make_view

    view = make_view(batch=1, n=9)
    merged = get("lotm")(9, get("lotm").floor(9), 48, 3)(view).label[0].tolist()
    partners = {(i, j) for i, j in itertools.combinations(range(9), 2) if merged[i] == merged[j]}
    assert partners == set(zip(*Pairs.of(3, 3).kinds["adjacent"].tolist(), strict=True))


# Tallies

MODELS = {
    "square": ({}, (48, 48)),
    "odd": ({"img_size": (40, 56)}, (40, 56)),
    "no CLS": ({"class_token": False, "global_pool": "avg"}, (48, 48)),
    "registers": ({"reg_tokens": 2, "img_size": (24, 40)}, (24, 40)),
}


@pytest.mark.parametrize("features", ["residual", "attention"])
@pytest.mark.parametrize("name", MODELS)
def test_a_study_equals_loops_over_pairs(name, features):
    options, size = MODELS[name]
    model, images = tiny_vit(**options), noise(3, *size)
    measurement = study(model, images, features=features, batch_size=2).run(0)
    rows, columns = model.patch_embed.grid_size
    order = shuffle(0, torch.arange(3), rows * columns)
    shuffled = permute_patches(images, order, rows, columns)
    kinds = pairs_by_loops(rows, columns)
    for place, layer in enumerate(LAYERS):
        tokens = {
            "both": tokens_after_attention(model, images, layer, features),
            "position": tokens_after_attention(model, shuffled, layer, features),
        }
        # What was at place order[i] is at place i: by content, token order[i] is the one at i.
        tokens["content"] = np.empty_like(tokens["position"])
        for image in range(3):
            for at, origin in enumerate(order[image].tolist()):
                tokens["content"][image, origin] = tokens["position"][image, at]
        for sense in SENSES:
            _check(measurement.sums[sense], place, tokens[sense], kinds, columns)


def _check(tally, place, tokens, kinds, columns):
    for kind, name in enumerate(tally.pairs.kinds):
        values = np.array(
            [[cosine_by_hand(image[i], image[j]) for i, j in sorted(kinds[name])] for image in tokens]
        )
        np.testing.assert_allclose(tally.means[place, kind], values.mean(1), atol=1e-5)
        np.testing.assert_allclose(
            tally.sums[place, kind], [(values**power).sum() for power in (1, 2, 3, 4)], rtol=1e-4, atol=1e-3
        )
        assert tally.counts[place, kind].sum() == values.size
        below = np.concatenate([[0], np.cumsum(tally.counts[place, kind])])
        for edge in range(0, BINS + 1, 100):  # of pairs that lie on an edge rounding decides
            unsure = (np.abs(values - EDGES[edge]) < 1e-4).sum()
            assert abs(below[edge] - (values < EDGES[edge]).sum()) <= unsure
    n = tokens.shape[1]
    near = np.zeros(n)
    for image in tokens:
        for i, j in itertools.product(range(n), repeat=2):
            near[abs(i // columns - j // columns) * columns + abs(i % columns - j % columns)] += (
                cosine_by_hand(image[i], image[j])
            )
    np.testing.assert_allclose(tally.near[place], near, rtol=1e-4, atol=1e-3)


def test_distilled_models_leave_both_prefix_tokens_out():
    import timm

    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=10,
    ).eval()
    images = noise(2)
    measurement = study(model, images, layers=(2,)).run(0)
    tokens = tokens_after_attention(model, images, 2)
    assert tokens.shape[1] == 36
    expected = [np.mean([cosine_by_hand(t[i], t[i + 1]) for i in range(0, 36, 2)]) for t in tokens]
    np.testing.assert_allclose(measurement.sums["both"].means[0, 0], expected, atol=1e-5)


def test_identical_tokens_are_fully_similar_and_orthogonal_ones_not_at_all():
    same = torch.full((2, 6, 8), 0.37)
    assert (cosine(same) <= 1).all()
    tally = Accumulator(Pairs.of(2, 3), 1, 4)
    tally.add(0, torch.tensor([0, 2]), same)
    assert torch.allclose(tally.means[0, :, [0, 2]], torch.ones(()).double())
    assert tally.means[0, :, [1, 3]].isnan().all()  # images that were not added
    assert (tally.counts[0, :, -1] == tally.counts[0].sum(-1)).all()
    tally = Accumulator(Pairs.of(2, 3), 1, 1)
    tally.add(0, torch.tensor([0]), torch.eye(6)[None])
    assert (tally.means == 0).all()
    assert (tally.counts[0, :, BINS // 2] == tally.counts[0].sum(-1)).all()
    tally.add(0, torch.tensor([0]), torch.zeros(1, 6, 8))  # a token without a direction is similar to none
    assert (tally.means == 0).all()


def test_slices_of_a_batch_add_up(monkeypatch):
    tokens, whole, sliced = (
        torch.randn(5, 12, 8),
        Accumulator(Pairs.of(3, 4), 1, 5),
        Accumulator(Pairs.of(3, 4), 1, 5),
    )
    whole.add(0, torch.arange(5), tokens)
    monkeypatch.setattr("tokred.studies.similarity.accumulator._CHUNK", 2 * 12**2)
    sliced.add(0, torch.arange(5), tokens)
    for name in ("counts", "sums", "means", "near"):
        torch.testing.assert_close(getattr(whole, name), getattr(sliced, name))


def test_batch_size_makes_no_difference():
    one, three = (study(tiny_vit(), noise(5), batch_size=size).run(0) for size in (1, 3))
    for sense in SENSES:
        torch.testing.assert_close(one.sums[sense].means, three.sums[sense].means, atol=1e-6, rtol=0)
        moved = (one.sums[sense].counts - three.sums[sense].counts).abs().sum()
        assert moved <= 0.002 * one.sums[sense].counts.sum()  # rounding at the edges of bins


# Shuffling


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_shuffling_moves_whole_patches_and_comes_back(rows, columns, seed):
    images = noise(3, rows * 4, columns * 5)
    order = shuffle(seed, torch.tensor([7, 8, 9]), rows * columns)
    assert torch.equal(order.sort(1).values, torch.arange(rows * columns).expand(3, -1))
    moved = permute_patches(images, order, rows, columns)
    for b, i in itertools.product(range(3), range(rows * columns)):
        origin = int(order[b, i])
        at = moved[b, :, i // columns * 4 :, i % columns * 5 :][:, :4, :5]
        assert torch.equal(at, images[b, :, origin // columns * 4 :, origin % columns * 5 :][:, :4, :5])
    assert torch.equal(permute_patches(moved, order.argsort(1), rows, columns), images)


def test_an_order_belongs_to_its_image_and_seed():
    alone, among = shuffle(3, torch.tensor([5]), 36), shuffle(3, torch.tensor([4, 5]), 36)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])
    assert not torch.equal(alone, shuffle(4, torch.tensor([5]), 36))


def test_the_identity_is_no_shuffle(monkeypatch):
    monkeypatch.setattr(
        "tokred.studies.similarity.study.shuffle",
        lambda seed, images, n: torch.arange(n).expand(len(images), n),
    )
    measurement = study(tiny_vit(), noise(3)).run(0)
    for sense in ("position", "content"):
        for name in ("counts", "sums", "means", "near"):
            assert torch.equal(
                getattr(measurement.sums[sense], name), getattr(measurement.sums["both"], name)
            )


def test_without_position_embedding_content_is_all():
    """A ViT without positions does not notice a shuffle: sorted back, its tokens are the same."""
    model = tiny_vit(no_embed_class=True)
    before = model.pos_embed.detach().clone()
    try:
        with torch.no_grad():
            model.pos_embed.zero_()
        measurement = study(model, noise(4)).run(0)
    finally:
        with torch.no_grad():
            model.pos_embed.copy_(before)
    torch.testing.assert_close(
        measurement.sums["content"].means, measurement.sums["both"].means, atol=1e-5, rtol=0
    )
    assert (measurement.sums["position"].means - measurement.sums["both"].means).abs().max() > 1e-3


# Shapes


def histogram(values):
    values = np.asarray(values)
    return np.histogram(values, EDGES)[0], np.array([(values**power).sum() for power in (1, 2, 3, 4)])


def shape_of(values):
    counts, sums = histogram(values)
    return shape(counts, EDGES, sums)


def test_moments_are_those_of_scipy():
    values = np.random.default_rng(0).beta(2, 5, 5000)
    found = shape_of(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.sd == pytest.approx(values.std())
    assert found.skew == pytest.approx(stats.skew(values), abs=1e-6)
    assert found.excess_kurtosis == pytest.approx(stats.kurtosis(values), abs=1e-6)
    assert found.normal_distance == pytest.approx(
        stats.kstest(values, stats.norm(values.mean(), values.std()).cdf).statistic, abs=0.005
    )


def test_shapes_have_their_names():
    rng = np.random.default_rng(0)
    assert shape_of(rng.normal(0.2, 0.1, 20_000)).shape == "normal"
    assert shape_of(rng.normal(0.2, 0.01, 20_000)).shape == "normal"
    assert shape_of(1 - rng.exponential(0.1, 20_000).clip(0, 2)).shape == "one mode"
    two = np.concatenate([rng.normal(-0.3, 0.1, 10_000), rng.normal(0.5, 0.1, 5_000)])
    assert shape_of(two).shape == "bimodal"
    assert shape_of(np.concatenate([two, rng.normal(0.9, 0.02, 5_000)])).shape == "3 modes"
    piled = np.concatenate([rng.normal(0.2, 0.1, 10_000), 1 - rng.exponential(0.02, 5_000)])
    assert shape_of(piled).shape == "bimodal"  # mass against the end of the range is a mode
    small = rng.normal(0.2, 0.1, 60)  # of few pairs the histogram is a comb, and still no several modes
    assert shape_of(small).modes == 1
    assert shape_of(rng.uniform(0, 1, 50_000)).bimodality == pytest.approx(5 / 9, abs=0.01)
    assert shape_of([0.25] * 50 + [0.75] * 50).bimodality == pytest.approx(1)


def test_a_single_point_has_no_skew():
    found = shape_of([0.3] * 40)
    assert (found.sd, found.modes) == (pytest.approx(0, abs=1e-6), 1)
    assert math.isnan(found.skew)
    assert modes(*histogram([0.3] * 40)[:1], EDGES, 0.0) == 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.01, 1))
def test_quantiles_are_exact_to_a_bin(values, at):
    counts, _ = histogram(values)
    found = quantiles(counts, EDGES, (at,))[0]
    expected = np.quantile(values, at, method="inverted_cdf")
    assert abs(found - expected) <= 2 / BINS + 1e-9


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20)
)
def test_superiority_counts_draws(first, second):
    wins = np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(first, second)])
    assert superiority(np.bincount(first, minlength=10), np.bincount(second, minlength=10)) == pytest.approx(
        wins
    )


# Intervals


def test_intervals_are_those_of_one_sum_at_a_time():
    rng = np.random.default_rng(1)
    count, total = rng.integers(1, 4, 80).astype(float), rng.normal(1, 1, (80, 3))
    lo, hi = intervals(total, count)
    for column in range(3):
        expected = interval(total[:, column], count)
        assert (lo[column], hi[column]) == pytest.approx(expected, abs=0.02)
    np.testing.assert_array_equal(intervals(total[:1], count[:1])[0], total[0] / count[0])
    np.testing.assert_array_equal(intervals(total, count), intervals(total, count))


def test_intervals_in_parts_cover_the_mean(monkeypatch):
    monkeypatch.setattr("tokred.evaluation.metrics._BATCH_ENTRIES", 900)
    values = np.random.default_rng(0).normal(3, 1, (100, 1))
    lo, hi = intervals(values, np.ones(100))
    half = 1.96 * values.std() / 10
    assert lo[0] == pytest.approx(values.mean() - half, abs=0.03)
    assert hi[0] == pytest.approx(values.mean() + half, abs=0.03)


# The premise


def smooth(n=12):
    """Images that change slowly: neighbouring patches are alike, distant ones are not."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:48, 0:48] / 48
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y) + phase)
        for fx, fy, phase in rng.uniform(0.3, 0.9, (3 * n, 3)) * (1, 1, 7)
    ]
    return torch.tensor(np.array(waves).reshape(n, 3, 48, 48) * 3, dtype=torch.float32)


def blind(model):
    """Its tokens are the patches' embeddings and what attention makes of them; positions play no part."""
    with torch.no_grad():
        model.pos_embed.mul_(0)
    return model


def chosen(findings, sense, kind):
    """The rows of one sense and kind."""
    return list(premise.select(findings, sense, kind).itertuples())


@pytest.fixture(scope="module")
def found_smooth():
    measurement = study(blind(tiny_vit(qkv_bias=False)), smooth()).run(0)
    return measurement, premise.findings(measurement)


def test_smooth_images_have_the_premise_and_lose_it_with_their_places(found_smooth):
    _, found = found_smooth
    for kind in ("adjacent", "window", "square", "vertical"):
        for f in chosen(found, "both", kind):
            assert f.verdict == premise.HOLDS
            assert f.difference_lo > 0
            assert f.share_of_images == 1
            assert f.superiority > 0.5
    assert {f.verdict for f in chosen(found, "content", "adjacent")} == {premise.HOLDS}
    assert {f.verdict for f in chosen(found, "position", "adjacent")} == {premise.OPEN}
    near = chosen(found, "both", "adjacent")[0]
    assert near.effect > 0.5
    assert near.effect == pytest.approx(near.difference / chosen(found, "both", "all")[0].sd)
    assert {(f.difference, f.verdict) for f in chosen(found, "both", "all")} == {(0.0, "")}


def test_noise_does_not_have_the_premise():
    found = premise.findings(study(blind(tiny_vit(qkv_bias=False)), noise(40, seed=3)).run(0))
    near = [f for sense in SENSES for f in chosen(found, sense, "adjacent")]
    assert {f.verdict for f in near} == {premise.OPEN}
    assert max(abs(f.effect) for f in near) < 0.1


def test_images_whose_neighbours_differ_refute_the_premise():
    """A chessboard of patches: neighbours are of opposite colour."""
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 2.0 - 1
    images = torch.kron(board, torch.ones(8, 8)).expand(6, 3, 48, 48) + 0.1 * noise(6)
    found = premise.findings(study(blind(tiny_vit(qkv_bias=False)), images, layers=(1,)).run(0))
    near = chosen(found, "both", "adjacent")[0]
    assert (near.verdict, near.share_of_images) == (premise.FAILS, 0)
    assert near.difference_hi < 0


def test_tokens_in_random_order_are_as_similar_as_all_pairs():
    """Sanity of the test itself: any one order of the same tokens is no better than another on average."""
    tokens = (
        torch.randn(40, 36, 8) + torch.linspace(0, 4, 36)[None, :, None]
    )  # similar to their neighbours, until shuffled
    pairs = Pairs.of(6, 6)
    sorted_, mixed = Accumulator(pairs, 1, 40), Accumulator(pairs, 1, 40)
    sorted_.add(0, torch.arange(40), tokens)
    mixed.add(0, torch.arange(40), tokens.take_along_dim(shuffle(0, torch.arange(40), 36)[..., None], dim=1))
    kinds = list(pairs.kinds)
    for tally, holds in ((sorted_, True), (mixed, False)):
        difference = (tally.means[0, kinds.index("adjacent")] - tally.means[0, kinds.index("all")]).numpy()
        lo, hi = intervals(difference[:, None], np.ones(40))
        assert (premise.verdict(lo[0], hi[0], 40) == premise.HOLDS) is holds
    torch.testing.assert_close(
        sorted_.means[0, kinds.index("all")], mixed.means[0, kinds.index("all")], atol=1e-6, rtol=0
    )


def test_one_group_decides_nothing():
    """Images of one source digit are one observation, however many they are."""
    measurement = study(
        blind(tiny_vit(qkv_bias=False)), smooth(), groups=np.zeros(12, dtype=int), layers=(1,)
    ).run(0)
    near = chosen(premise.findings(measurement), "both", "adjacent")[0]
    assert (near.verdict, near.share_of_images) == (premise.OPEN, 1)


def test_the_share_above_one_half_is_that_of_a_loop(found_smooth):
    _, found = found_smooth
    tokens = tokens_after_attention(blind(tiny_vit(qkv_bias=False)), smooth(), LAYERS[0])
    for row in found[(found.layer == LAYERS[0]) & (found.neighbours == "both")].itertuples():
        pairs = pairs_by_loops(6, 6)[row.kind]
        above = np.mean([cosine_by_hand(image[i], image[j]) > 0.5 for image in tokens for i, j in pairs])
        assert row.share_above_half == pytest.approx(above, abs=2 / (len(pairs) * len(tokens)))


def test_means_by_distance_are_those_of_a_loop(found_smooth):
    measurement, _ = found_smooth
    frame = premise.by_distance(measurement)
    both = frame[(frame.neighbours == "both") & (frame.layer == LAYERS[1])]
    distances, means = both.distance, both["mean"]
    tokens = tokens_after_attention(blind(tiny_vit(qkv_bias=False)), smooth(), LAYERS[1])
    found = {int(distance): [] for distance in distances}
    for image, (i, j) in itertools.product(tokens, itertools.combinations(range(36), 2)):
        distance = round(math.hypot(i // 6 - j // 6, i % 6 - j % 6))
        found[distance].append(cosine_by_hand(image[i], image[j]))
    np.testing.assert_allclose(means, [np.mean(values) for values in found.values()], atol=1e-5)
    assert premise.lowest(frame)[LAYERS[1]] == int(distances.iloc[np.argmin(means)])


# Files and the command


def test_files_say_what_they_are_about(found_smooth, tmp_path):
    measurement, found = found_smooth
    report.write(measurement, found, tmp_path)
    table = pd.read_csv(tmp_path / "similarity.csv")
    assert len(table) == len(LAYERS) * len(SENSES) * len(KINDS)
    assert set(table["model"]) == {"tiny"}
    assert set(table["data"]) == {"made test (12 images)"}
    counts = pd.read_csv(tmp_path / "histograms.csv").groupby(["layer", "neighbours", "kind"])["pairs"].sum()
    for row in table.itertuples():
        assert counts[row.layer, row.neighbours, row.kind] == row.pairs
    about = json.loads((tmp_path / "run.json").read_text())
    assert (about["title"], about["configuration"]["layers"]) == (
        "tiny on made test (12 images)",
        list(LAYERS),
    )
    for name in ("similarity", "layers", "distance"):
        assert "made test (12 images)" in (tmp_path / f"{name}.svg").read_text()
        assert Image.open(tmp_path / f"{name}.png").size[0] > 1000
    report.check_folder(tmp_path)  # its own results it replaces
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TokredError, match="something else"):
        report.write(measurement, found, tmp_path)


def test_figures_of_a_grid_of_one_line():
    """Five patches in a line: one window, no square, nothing above anything."""
    model = tiny_vit(img_size=(8, 40))
    measurement = study(model, noise(3, 8, 40), layers=(1,)).run(0)
    assert set(measurement.pairs.kinds) == {"adjacent", "window", "all"}
    found = premise.findings(measurement)
    assert [text.startswith("<?xml") for text in map(svg, figures.figures(measurement, found).values())] == [
        True
    ] * 3
    assert len(report.premise_table(measurement, found).rows) == 1


def test_names_of_folders_are_no_formulas(found_smooth):
    measurement, found = found_smooth
    drawn = figures.figures(dataclasses.replace(measurement, data="a$_{b}$ & <c> test"), found)["layers"]
    assert "a$_{b}$ &amp; &lt;c&gt; test" in svg(drawn)


def test_sentences_name_the_layers(found_smooth):
    _, found = found_smooth
    picture, position, content = premise.sentences(found)
    assert picture == "Neighbours in the picture: holds at all layers."
    assert position == "Neighbours in position only: not separable at all layers."
    assert content == "Neighbours in content only: holds at all layers."
    mixed = found.assign(verdict=found.verdict.where(found.layer != 3, premise.FAILS))
    assert (
        premise.sentences(mixed)[0]
        == "Neighbours in the picture: holds at layers 1, does not hold at layers 3."
    )


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TokredError, match="without torchrun"):
        study(tiny_vit(), noise(1))


def test_unreadable_images_are_left_out(tmp_path):
    from tokred.data.loading import Batch

    images = smooth(4)
    with_hole = study(tiny_vit(), images, on_error="skip")
    batch = Batch(
        torch.cat([images[:2], torch.zeros(1, 3, 48, 48), images[3:]]),
        torch.zeros(4),
        torch.arange(4),
        {2: "cut off"},
    )
    with mock.patch.object(Study, "_batches", return_value=iter([batch])):
        measurement = with_hole.run(0)
    assert (measurement.images, measurement.about["unreadable"]) == (3, {2: "cut off"})
    assert measurement.title == "tiny on made test (4 images, 1 unreadable)"
    without = study(tiny_vit(), images[[0, 1, 3]]).run(0)
    differences = [list(premise.findings(each).difference[:3]) for each in (measurement, without)]
    assert differences[0] == pytest.approx(differences[1], abs=1e-5)
    nothing = batch._replace(unreadable=dict.fromkeys(range(4), "cut off"))
    with (
        mock.patch.object(Study, "_batches", return_value=iter([nothing])),
        pytest.raises(TokredError, match="None of the 4 images can be read"),
    ):
        study(tiny_vit(), images, on_error="skip").run(0)


def test_numbers_that_are_not_finite_are_refused_with_their_layer():
    import copy

    broken = copy.deepcopy(tiny_vit())
    with torch.no_grad():
        broken.blocks[2].attn.proj.bias.fill_(float("nan"))
    assert study(broken, noise(2), layers=(1, 2)).run(0).images == 2  # what comes before is sound
    with pytest.raises(TokredError, match="not finite in the attention of layer 3"):
        study(broken, noise(2), layers=(1, 3)).run(0)


SMALL = ("--model", "deit_t", "--limit", "4", "--workers", "0", "--precision", "fp32", "--layers", "1")


def test_the_command_leaves_its_files_and_prints_the_verdict(tmp_path):
    code, text = run("similarity", *SMALL, "--out", tmp_path / "out")
    assert code == 0, text
    assert "deit_t on PhotoDigits test (first 4 images)" in text
    assert "holds" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*report.FILES, "run.json"}
    run_json = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run_json["command"], run_json["images"], run_json["configuration"]["limit"]) == (
        "similarity",
        4,
        4,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--layers", "13"), "--layers takes layers of deit_t, 1 to 12; got 13."),
        (("--layers", "0 1"), "got 0."),
        (("--layers", "one"), '--layers takes layer numbers, such as "4 7 10"'),
        (("--layers", ""), "got none."),
        (("--features", "keys"), "--features is one of residual, attention; got 'keys'."),
        (("--limit", "0"), "--limit is the number of images"),
        (("--data", "/nowhere/at/all"), "No data at '/nowhere/at/all'"),
        (("--split", "train"), "PhotoDigits has the splits"),
        (("--model", "deit_x"), "Unknown model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    code, text = run("similarity", *SMALL, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert sentence in text
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"configuration": {}}')
    code, text = run("similarity", *SMALL, "--out", tmp_path)
    assert (code, [path.name for path in tmp_path.iterdir()]) == (2, ["run.json"])
    assert "something else" in text


def test_an_interrupt_is_one_clean_sentence(tmp_path):
    with mock.patch.object(Study, "run", side_effect=KeyboardInterrupt):
        code, text = run("similarity", *SMALL, "--out", tmp_path / "out")
    assert (code, list((tmp_path / "out").iterdir())) == (130, [])
    assert "Interrupted; nothing was written." in text


def test_a_study_can_be_interrupted():
    with pytest.raises(KeyboardInterrupt):
        study(tiny_vit(), noise(4), batch_size=1).run(0, lambda images: signal.raise_signal(signal.SIGINT))
