"""Similarities of tokens against loops over pairs, and shuffled patches."""

import itertools
import signal
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.similarity import (
    LAYERS,
    cosine_by_hand,
    noise,
    pairs_by_loops,
    smooth,
    study,
    tokens_after_attention,
)
from hypothesis import given
from hypothesis import strategies as st

from tokred.data import loading
from tokred.errors import TokredError
from tokred.studies.similarity import premise
from tokred.studies.similarity.accumulator import BINS, EDGES, Accumulator, cosine
from tokred.studies.similarity.pairs import Pairs
from tokred.studies.similarity.study import SENSES, permute_patches, shuffle
from tokred.testing import tiny_vit

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
    with mock.patch.object(loading, "batches", return_value=iter([batch])):
        measurement = with_hole.run(0)
    assert (measurement.images, measurement.about["unreadable"]) == (3, {2: "cut off"})
    assert measurement.title == "tiny on made test (4 images, 1 unreadable)"
    without = study(tiny_vit(), images[[0, 1, 3]]).run(0)
    differences = [list(premise.findings(each).difference[:3]) for each in (measurement, without)]
    assert differences[0] == pytest.approx(differences[1], abs=1e-5)
    nothing = batch._replace(unreadable=dict.fromkeys(range(4), "cut off"))
    with (
        mock.patch.object(loading, "batches", return_value=iter([nothing])),
        pytest.raises(TokredError, match="None of the 4 images could be read"),
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


def test_a_study_can_be_interrupted():
    with pytest.raises(KeyboardInterrupt):
        study(tiny_vit(), noise(4), batch_size=1).run(0, lambda images: signal.raise_signal(signal.SIGINT))
