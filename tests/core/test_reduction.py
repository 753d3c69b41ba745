"""Decisions against explicit matrices, and conservation laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.reducer import View
from tokred.core.reduction import History, Keep, Merge, Mix, compose, compose_labels, unmerge
from tokred.errors import TokredError


def partition(seed, batch=2, n=9, m=4):
    """Random labels in which every group has a member."""
    rng = np.random.default_rng(seed)
    labels = np.stack(
        [rng.permutation(np.concatenate([np.arange(m), rng.integers(0, m, n - m)])) for _ in range(batch)]
    )
    return torch.from_numpy(labels)


def tokens(seed, batch=2, n=9, dim=5):
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_merge_is_a_loop_over_groups(seed, mean, weighted):
    label, x = partition(seed), tokens(seed)
    weight = (
        torch.rand(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
        if weighted
        else None
    )
    pooled = Merge(label, 4, weight, "mean" if mean else "sum").pool(x)
    for b in range(2):
        for group in range(4):
            members = [i for i in range(9) if label[b, i] == group]
            w = [1.0 if weight is None else weight[b, i].item() for i in members]
            want = sum(wi * x[b, i] for wi, i in zip(w, members, strict=True)) / (sum(w) if mean else 1.0)
            assert torch.allclose(pooled[b, group], want, atol=1e-12)


def dropping(seed, batch=2, n=9, m=4):
    """Random labels in which every group has a member, and about a third of the others are -1."""
    label, rng = partition(seed, batch, n, m), np.random.default_rng(seed)
    gone = rng.random((batch, n)) < 0.4
    for b in range(batch):
        gone[b, [label[b].tolist().index(group) for group in range(m)]] = False
    return label.masked_fill(torch.from_numpy(gone), -1)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(0, 2))
def test_a_label_of_minus_one_drops_a_token(seed, mean, weighted, prefix):
    label, x, rng = dropping(seed), tokens(seed, n=prefix + 9), np.random.default_rng(seed)
    weight, size = rng.random((2, 9)) * (label.numpy() >= 0), rng.integers(1, 9, (2, 9))
    merge = Merge(
        label,
        4,
        torch.from_numpy(weight) if weighted else None,
        "mean" if mean else "sum",
        drops=True,
    )
    after = merge.apply(x, prefix)
    pooled, want_size = np.zeros((2, 4, 5)), np.zeros((2, 4))
    for b in range(2):
        total = np.zeros(4)
        for i in range(9):
            if label[b, i] >= 0:
                w = weight[b, i] if weighted else 1.0
                pooled[b, label[b, i]] += w * x[b, prefix + i].numpy()
                total[label[b, i]] += w
                want_size[b, label[b, i]] += size[b, i]
        if mean:
            pooled[b] /= total[:, None]
    assert torch.equal(after[:, :prefix], x[:, :prefix])
    np.testing.assert_allclose(after[:, prefix:].numpy(), pooled, atol=1e-12)
    np.testing.assert_allclose(merge.pool(x[:, prefix:]).numpy(), pooled, atol=1e-12)
    np.testing.assert_allclose((merge.matrix().double() @ x[:, prefix:]).numpy(), pooled, atol=1e-5)
    np.testing.assert_array_equal(merge.sizes(torch.from_numpy(size)).numpy(), want_size)
    assert torch.equal(compose([merge]).argmax(1)[label >= 0], label[label >= 0])
    assert (compose([merge]).sum(1) == (label >= 0)).all()
    restored = merge.unmerge(merge.pool(x[:, prefix:]))
    for b in range(2):
        for i in range(9):
            own = pooled[b, label[b, i]] if label[b, i] >= 0 else np.zeros(5)
            np.testing.assert_allclose(restored[b, i].numpy(), own, atol=1e-12)


def test_what_drops_nothing_equals_what_may_not_drop():
    label, x, weight = partition(3), tokens(3, n=10).float(), torch.rand(2, 9)
    for options in (
        {},
        {"weight": weight},
        {"weight": weight, "reduce": "sum"},
        {"reduce": "norm"},
        {"reduce": "absmax"},
    ):
        plain, free = Merge(label, 4, **options), Merge(label, 4, **options, drops=True)
        assert torch.equal(plain.apply(x, 1), free.apply(x, 1))
        assert torch.equal(plain.pool(x[:, 1:]), free.pool(x[:, 1:]))


def test_dropped_tokens_without_weight_leave_gradients_finite():
    x, weight = tokens(0).requires_grad_(), torch.tensor([[1.0, 0.0, 2.0, 0.0]] * 2, requires_grad=True)
    merge = Merge(torch.tensor([[0, -1, 1, -1]] * 2), 2, weight, drops=True)
    merge.pool(x[:, :4]).square().sum().backward()
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()
    assert (x.grad[:, [1, 3]] == 0).all()


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_a_mean_keeps_the_largest_norm(seed, weighted, drops):
    label, x = dropping(seed) if drops else partition(seed), tokens(seed).numpy()
    weight = np.random.default_rng(seed).random((2, 9)) + 0.1
    given_weight = torch.from_numpy(weight) if weighted else None
    merge = Merge(label, 4, given_weight, "norm", drops=drops)
    pooled = merge.pool(torch.from_numpy(x)).numpy()
    for b in range(2):
        for group in range(4):
            members = np.flatnonzero(label[b].numpy() == group)
            mean = np.average(x[b, members], axis=0, weights=weight[b, members] if weighted else None)
            largest = max(np.linalg.norm(x[b, i]) for i in members)
            np.testing.assert_allclose(pooled[b, group], mean / np.linalg.norm(mean) * largest, atol=1e-9)
            if len(members) == 1:
                np.testing.assert_array_equal(pooled[b, group], x[b, members[0]])
    assert not merge.linear


def test_tokens_that_cancel_out_stay_zero():
    x = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]], requires_grad=True)
    pooled = Merge(torch.zeros(1, 2, dtype=torch.long), 1, reduce="norm").pool(x)
    assert pooled.tolist() == [[[0.0, 0.0]]]
    pooled.sum().backward()
    assert x.grad.isfinite().all()


@given(st.integers(0, 10_000), st.booleans())
def test_the_value_of_largest_magnitude_survives_in_each_channel(seed, drops):
    label, x = dropping(seed) if drops else partition(seed), tokens(seed)
    pooled = Merge(label, 4, reduce="absmax", drops=drops).pool(x)
    for b in range(2):
        for group in range(4):
            members = x[b, label[b] == group].numpy()
            want = members[np.abs(members).argmax(0), np.arange(5)]
            np.testing.assert_array_equal(pooled[b, group].numpy(), want)


def test_of_two_values_of_one_magnitude_the_positive_one_survives_and_has_the_gradient():
    x = torch.tensor([[[-2.0, 1.0], [2.0, -3.0]]], requires_grad=True)
    pooled = Merge(torch.zeros(1, 2, dtype=torch.long), 1, reduce="absmax").pool(x)
    assert pooled.tolist() == [[[2.0, -3.0]]]
    pooled.sum().backward()
    assert x.grad.tolist() == [[[0.0, 0.0], [1.0, 1.0]]]


@given(st.integers(0, 10_000), st.booleans())
def test_a_token_counts_for_its_mass_and_comes_from_its_patches(seed, drops):
    label = dropping(seed) if drops else partition(seed)
    rng = np.random.default_rng(seed)
    size, share = rng.integers(1, 5, (2, 9)), rng.random((2, 9)) + 0.1
    merge = Merge(label, 4, mass=torch.from_numpy(size * share), drops=drops)
    for b in range(2):
        for group in range(4):
            members = np.flatnonzero(label[b].numpy() == group)
            sizes = merge.sizes(torch.from_numpy(size))[b, group].item()
            assert sizes == pytest.approx((size * share)[b, members].sum())
            assert compose([merge])[b, group].nonzero().flatten().tolist() == members.tolist()
    later = History(Keep(torch.tensor([[2], [0]]), 4), History(merge))
    assert later.size[0, 0].item() == pytest.approx(merge.sizes(torch.ones(2, 9))[0, 2].item())


@given(st.integers(0, 10_000))
def test_merge_conserves_sizes_and_weighted_sums(seed):
    label, x = partition(seed), tokens(seed)
    size = torch.randint(1, 9, (2, 9), generator=torch.Generator().manual_seed(seed)).double()
    merge = Merge(label, 4, size)
    after = merge.sizes(size)
    assert torch.allclose(after.sum(1), size.sum(1))
    assert torch.allclose((after.unsqueeze(-1) * merge.pool(x)).sum(1), (size.unsqueeze(-1) * x).sum(1))


def test_a_token_alone_in_its_group_passes_bit_for_bit():
    x = tokens(0).float()
    label = torch.arange(9).expand(2, 9)
    assert torch.equal(Merge(label, 9).pool(x), x)


def test_merging_many_bfloat16_tokens_rounds_once():
    x = torch.full((1, 1000, 1), 1.0).bfloat16()
    x[0, 0] = 3.0
    pooled = Merge(torch.zeros(1, 1000, dtype=torch.long), 1).pool(x)
    assert (
        pooled.item() == torch.tensor(1002 / 1000).bfloat16().item()
    )  # a bfloat16 sum would stop growing at 256


def test_keep_selects_drops_and_says_so():
    x = tokens(1)
    keep = Keep(torch.tensor([[4, 0, 7], [1, 2, 3]]), 9)
    assert torch.equal(keep.pool(x), torch.stack([x[0, [4, 0, 7]], x[1, [1, 2, 3]]]))
    assert keep.labels().tolist() == [[1, -1, -1, -1, 0, -1, -1, 2, -1], [-1, 0, 1, 2, -1, -1, -1, -1, -1]]
    assert keep.sizes(torch.ones(2, 9)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_keep_with_labels_hands_sizes_to_the_survivor():
    keep = Keep(torch.tensor([[2, 0]]), 4, label=torch.tensor([[1, 1, 0, -1]]))
    assert keep.sizes(torch.tensor([[1.0, 5.0, 2.0, 9.0]])).tolist() == [[2.0, 6.0]]


@given(st.integers(0, 10_000))
def test_mix_shares_every_token_out(seed):
    weight = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, size = tokens(seed), torch.ones(2, 9, dtype=torch.float64)
    mix = Mix(weight)
    assert torch.allclose(mix.pool(x), torch.einsum("bmn,bnc->bmc", weight, x))
    assert torch.allclose(mix.sizes(size).sum(1), size.sum(1), atol=1e-5)
    assert torch.equal(mix.labels(), weight.argmax(1))
    value = tokens(seed + 1)
    assert torch.allclose(Mix(weight, value).pool(x), torch.einsum("bmn,bnc->bmc", weight, value))


@given(st.integers(0, 10_000))
def test_composition_is_the_product_of_the_stages(seed):
    first, second = Merge(partition(seed), 4), Keep(torch.tensor([[2, 0], [1, 3]]), 4)
    source = compose([first, second])
    want = second.matrix() @ torch.nn.functional.one_hot(first.label, 4).mT.float()
    assert torch.allclose(source, want)
    labels = compose_labels([first, second])
    for b in range(2):
        for i in range(9):
            slot = first.label[b, i].item()
            kept = second.index[b].tolist()
            assert labels[b, i].item() == (kept.index(slot) if slot in kept else -1)


@given(st.integers(0, 10_000))
def test_unmerge_after_merge_gives_group_means(seed):
    label, x = partition(seed), tokens(seed)
    merge = Merge(label, 4)
    restored = unmerge([merge], merge.pool(x))
    for b in range(2):
        for i in range(9):
            assert torch.allclose(restored[b, i], x[b, label[b] == label[b, i]].mean(0))


@given(st.integers(0, 10_000), st.permutations(["keep", "absorb", "merge", "drop", "mix"]))
def test_the_position_of_a_token_is_the_mean_over_its_patches(seed, kinds):
    rng, history, count, (rows, columns) = np.random.default_rng(seed), None, 12, (3, 4)
    share = np.broadcast_to(np.eye(12), (2, 12, 12))  # of each patch in each token
    for kind in kinds[:3]:
        keep, label = count - 2, partition(seed, 2, count, count - 2)
        index = torch.from_numpy(np.stack([rng.permutation(count)[:keep] for _ in range(2)]))
        weight = torch.from_numpy(rng.random((2, keep, count)))
        member = np.zeros((2, keep, count))
        for b in range(2):
            for i in range(count):
                member[b, label[b, i], i] = 1
        if kind == "keep":
            reduction, step = Keep(index, count), np.eye(count)[index.numpy()]
        elif kind == "absorb":
            reduction, step = Keep(index, count, label), member
        elif kind == "merge":
            reduction, step = Merge(label, keep, weight[:, 0], drops=seed % 2 == 0), member
        elif kind == "drop":
            label = dropping(seed, 2, count, keep)
            reduction, step = Merge(label, keep, drops=True), member * (label.numpy() >= 0)[:, None]
        else:
            reduction, step = Mix(weight), weight.numpy() / weight.numpy().sum(1, keepdims=True)
        history, share, count = History(reduction, history), step @ share, keep
    places = np.stack(np.unravel_index(np.arange(12), (rows, columns)), axis=-1)
    want = share @ places / share.sum(-1, keepdims=True)
    view = View(torch.zeros(2, count, 5), torch.zeros(2, 1, 5), grid=(rows, columns), history=history)
    np.testing.assert_allclose(view.position.numpy(), want, atol=1e-5)
    assert history.places(columns) is history.places(columns)


def test_patches_are_in_raster_order_before_the_first_stage():
    view = View(torch.zeros(2, 6, 5), torch.zeros(2, 1, 5), grid=(2, 3))
    assert view.position.tolist() == [[[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]] * 2


def test_composing_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        compose([])


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_the_prefix_passes_and_the_tokens_are_pooled_as_without(seed, prefix):
    x, label, weight = (
        tokens(seed, n=prefix + 9),
        partition(seed),
        tokens(seed, dim=1).squeeze(-1).abs() + 0.1,
    )
    soft = tokens(seed, n=4, dim=9)
    for decision in (
        Keep(torch.tensor([[2, 0, 8], [1, 5, 4]]), 9),
        Merge(label, 4),
        Merge(label, 4, weight),
        Merge(label, 4, weight, "sum"),
        Merge(label, 4, weight, "norm"),
        Merge(label, 4, reduce="absmax"),
        Mix(soft),
        Mix(soft, tokens(seed + 1)),
    ):
        after = decision.apply(x, prefix)
        assert torch.equal(after[:, :prefix], x[:, :prefix])
        assert torch.allclose(after[:, prefix:], decision.pool(x[:, prefix:]), atol=1e-12)


def test_sizes_are_added_up_once_and_only_when_asked_for():
    asked = []

    class Counting(Merge):
        def sizes(self, size):
            asked.append(self.m)
            return super().sizes(size)

    first = History(Counting(torch.tensor([[0, 1, 0, 2]]), 3))
    second = History(Counting(torch.tensor([[1, 1, 0]]), 2), first)
    assert asked == []
    assert second.size.tolist() == [[1.0, 3.0]]
    assert first.size.tolist() == [[2.0, 1.0, 1.0]]
    assert second.size is second.size
    assert asked == [3, 2]
    assert second.reductions == (*first.reductions, second.reductions[-1])


def test_sizes_of_a_mix_are_what_it_carries():
    mix, size = Mix(torch.rand(2, 4, 9)), torch.rand(2, 9)
    assert torch.allclose(mix.sizes(size), mix.carry(size.unsqueeze(-1)).squeeze(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("reductions", "shape", "message"),
    [
        (3, (2, 3, 4), "takes a sequence of reductions"),
        ([None], (2, 3, 4), "takes a sequence of reductions"),
        (None, (2, 3), r"takes features \[B, M, C\]; got \(2, 3\)"),
        (None, (2, 4, 4), r"leaves 3 patch tokens of 2 images; .* shape \[2, 4, 4\]"),
        (None, (1, 3, 4), "leaves 3 patch tokens of 2 images"),
    ],
)
def test_features_that_cannot_be_unmerged_are_one_sentence(reductions, shape, message):
    keep = Keep(torch.arange(3).expand(2, 3), n=6)
    with pytest.raises(TokredError, match=message):
        unmerge([keep] if reductions is None else reductions, torch.zeros(shape))
