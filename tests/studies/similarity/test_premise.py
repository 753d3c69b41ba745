"""The premise of LoTM on images that are made to have it or not."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.similarity import (
    LAYERS,
    blind,
    cosine_by_hand,
    noise,
    pairs_by_loops,
    smooth,
    study,
    tokens_after_attention,
)

from tokred.evaluation.metrics import intervals
from tokred.studies.similarity import premise
from tokred.studies.similarity.accumulator import Accumulator
from tokred.studies.similarity.pairs import Pairs
from tokred.studies.similarity.study import SENSES, shuffle
from tokred.testing import tiny_vit


def chosen(findings, sense, kind):
    """The rows of one sense and kind."""
    return list(premise.select(findings, sense, kind).itertuples())


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
