"""Checks that a decision depends on its view alone, whatever the batch, dtype, device or copy."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tokred.core.reducer import Attention, Reducer
from tokred.core.rules import broken_rule
from tokred.testing.battery import check, expect, reachable, runs
from tokred.testing.samples import DIM, build, decide, images, make_view, map_view, reduced, tiny_vit


@check
def check_deterministic(cls: type[Reducer]) -> None:
    """Twice the same view gives the same result, and global random numbers are not touched."""
    reducer, view = build(cls, 16, reachable(cls, 16)[0]), make_view()
    state = torch.get_rng_state()
    first, second = reducer(view).pool(view.x), reducer(map_view(view, Tensor.clone)).pool(view.x)
    expect(torch.equal(first, second), "Two runs differ.")
    expect(torch.equal(state, torch.get_rng_state()), "The reducer drew global random numbers; use view.rng.")


@check
def check_batch_slice(cls: type[Reducer]) -> None:
    """An image's result does not depend on the rest of its batch."""
    for view, reducer in runs(cls):
        whole = decide(reducer, view).pool(view.x)
        for row in range(3):
            alone = map_view(view, partial(torch.narrow, dim=0, start=row, length=1))
            own = decide(reducer, alone).pool(alone.x)
            expect(
                torch.allclose(own, whole[row : row + 1, : own.shape[1]], atol=1e-5)
                and (reducer.adaptive() or own.shape[1] == whole.shape[1]),
                "A batch of 1 differs from its slice.",
            )


@check
def check_batch_permutation(cls: type[Reducer]) -> None:
    """Permuting the batch permutes the results."""
    order = torch.tensor([2, 0, 1])
    for view, reducer in runs(cls):
        moved = map_view(view, lambda tensor: tensor[order])
        after, before = decide(reducer, moved).pool(moved.x), decide(reducer, view).pool(view.x)
        expect(torch.allclose(after, before[order], atol=1e-5), "A permuted batch differs.")


@check
def check_ties(cls: type[Reducer]) -> None:
    """All tokens alike, or all zero, still give `keep` finite tokens."""
    reducer = build(cls, 16, reachable(cls, 16)[0])
    for value in (0.0, 1.0):
        view = map_view(make_view(), partial(torch.full_like, fill_value=value))
        view.__dict__["size"] = make_view().size
        result = decide(reducer, view)
        pooled = result.pool(view.x)
        count = pooled.shape[1] if reducer.adaptive() else reducer.keep
        expect(
            pooled.shape == (3, count, DIM) and pooled.isfinite().all(),
            f"Tokens that are all {value:g} break the reducer.",
        )
        expect(
            (result.sizes(view.size) > 0).all() or reducer.adaptive(),
            f"Of tokens that are all {value:g}, an output stands for no patch at all.",
        )


@check
def check_bfloat16(cls: type[Reducer]) -> None:
    """bfloat16 tokens come back as finite bfloat16."""
    view = map_view(make_view(), lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    view.__dict__["size"] = make_view().size
    reducer = build(cls, 16, reachable(cls, 16)[0])
    pooled = reducer(view).pool(view.x)
    expect(
        pooled.dtype == torch.bfloat16 and pooled.isfinite().all(),
        f"bfloat16 in gave {pooled.dtype} out, or values that are no numbers.",
    )


@check
def check_meta(cls: type[Reducer]) -> None:
    """The reducer runs on the meta device: shapes depend on shapes only, without host synchronisation."""
    meta = map_view(make_view(), lambda tensor: tensor.to("meta"))
    reducer = build(cls, 16, reachable(cls, 16)[0]).to("meta")
    decision = reducer(meta)
    count = decision.m if reducer.adaptive() else reducer.keep  # which the framework trims
    expect(decision.pool(meta.x).shape == (3, count, DIM), "The shape on the meta device differs.")


@check
def check_copies(cls: type[Reducer]) -> None:
    """A reducer survives deepcopy and pickle."""
    reducer, view = build(cls, 16, reachable(cls, 16)[0]), make_view()
    want = reducer(view).pool(view.x)
    copies = {"deep": copy.deepcopy(reducer), "pickled": pickle.loads(pickle.dumps(reducer))}
    for kind, copied in copies.items():
        expect(torch.equal(copied(view).pool(view.x), want), f"A {kind} copy differs.")


@check
def check_gradients(cls: type[Reducer]) -> None:
    """Gradients reach the tokens, and in training every parameter of a learned method."""
    view = make_view()
    view.x.requires_grad_()
    reducer = build(cls, 16, reachable(cls, 16)[0])
    reducer(view).pool(view.x).square().sum().backward()
    expect(
        view.x.grad is not None and view.x.grad.isfinite().all() and view.x.grad.any(),
        "No gradient reaches the tokens.",
    )
    model = reduced(cls, tiny_vit())
    model.stages.train()
    model(images()).square().sum().backward()
    without = [
        name
        for name, parameter in model.stages.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    expect(not without, f"No gradient reaches {without}.")


@check
def check_nested(cls: type[Reducer]) -> None:
    """A reducer built for more tokens out does with its first rows what one built for fewer does."""
    view, (few, *_) = make_view(), reachable(cls, 16)
    large, small = build(cls, 16, 15), build(cls, 16, few)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            full = large.get_parameter(name)
            parameter.copy_(full[:few] if name in cls.nested else full)
    large.keep = few
    expect(
        torch.allclose(large(view).pool(view.x), small(view).pool(view.x), atol=1e-5),
        "Its first rows alone give another result.",
    )


@check
def check_padding(cls: type[Reducer]) -> None:
    """Where counts depend on the image, padding changes nothing and is dropped."""
    if not cls.adaptive():
        return
    view, reducer = make_view(n=12), build(cls, 16, 16)
    want, a = decide(reducer, view).pool(view.x), view.attention
    assert a
    q, k, v = (_pad(part, 4, dim=2) for part in (a.q, a.k, a.v))
    attention = Attention(q, k, v, a.scale, _pad(torch.zeros(3, 1, 1, 13), 4, dim=3, value=-torch.inf))
    padded = replace(view, x=_pad(view.x, 4, dim=1), attention=attention, adaptive=True)
    padded.__dict__["size"] = _pad(view.size, 4, dim=1)
    decision = decide(reducer, padded)
    rule = broken_rule(decision, 3, 16, None, padded.valid)
    expect(not rule, rule)
    pooled = decision.pool(padded.x)
    expect(
        pooled.shape == want.shape and torch.allclose(pooled, want, atol=1e-5),
        "Padding behind the tokens changes the result; mask it by view.valid.",
    )


def _pad(tensor: Tensor, size: int, dim: int, value: float = 0.0) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size
    return torch.cat([tensor, tensor.new_full(shape, value)], dim=dim)
