"""Checks of a class and of its decisions: facts, counts, indices, sizes, and what a call leaves behind."""

from __future__ import annotations

import copy
import inspect

import torch

from tokred.core.options import default_options
from tokred.core.reducer import Reducer
from tokred.core.reduction import Mix
from tokred.core.rules import broken_rule
from tokred.errors import TokredError
from tokred.testing.battery import check, expect, reachable, runs, softened
from tokred.testing.samples import DIM, HEADS, build, decide, make_view


@check
def check_documented(cls: type[Reducer]) -> None:
    """The docstring starts with a sentence, and options are keyword arguments with defaults."""
    first = inspect.cleandoc(cls.__doc__ or "").splitlines()[:1]
    expect(
        bool(first) and first[0].endswith("."),
        "The docstring must start with one sentence that says what the method does.",
    )
    parameters = inspect.signature(cls.__init__).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    expect(
        positional == ["self", "n", "keep", "dim", "heads"],
        f"__init__ must take (self, n, keep, dim, heads, *, options), not {positional}.",
    )
    missing = [name for name, default in default_options(cls).items() if default is inspect.Parameter.empty]
    expect(not missing, f"Options need defaults: {missing}.")


@check
def check_groups(cls: type[Reducer]) -> None:
    """`groups` is a tuple of names, and says "learned" or "training-free" as the method is."""
    named = isinstance(cls.groups, tuple) and all(name and isinstance(name, str) for name in cls.groups)
    names = 'a tuple of names such as ("merging", "training-free")'
    expect(named, f"groups must be {names}, not {cls.groups!r}.")
    wrong = "training-free" if build(cls, 16, reachable(cls, 16)[0]).learned else "learned"
    expect(wrong not in cls.groups, f"By its parameters the method is not {wrong}, as its groups say.")


@check
def check_output_count(cls: type[Reducer]) -> None:
    """Exactly `keep` tokens come out, finite, for even, odd and small counts."""
    for view, reducer in runs(cls):
        pooled = decide(reducer, view).pool(view.x)
        expect(
            reducer.adaptive() or pooled.shape == (3, reducer.keep, DIM),
            f"{view.x.shape[1]} tokens to {reducer.keep} gave {tuple(pooled.shape)}.",
        )
        expect(pooled.isfinite().all(), "The output has values that are no numbers.")


@check
def check_out_of_range(cls: type[Reducer]) -> None:
    """More tokens than there are, or fewer than the method can reach, are refused."""
    for keep in (17, cls.floor(16) - 1):
        try:
            cls(16, keep, DIM, HEADS)
        except TokredError:
            continue
        raise AssertionError(f"16 tokens to {keep} must raise a TokredError.")


@check
def check_decision(cls: type[Reducer]) -> None:
    """The result is a Keep, Merge or Mix with valid indices and labels, whose matrix agrees with pool."""
    for view, reducer in runs(cls):
        n, result = reducer.n, decide(reducer, view)
        keep = None if reducer.adaptive() else reducer.keep
        rule = broken_rule(result, 3, n, keep, view.valid)
        expect(not rule, rule)
        labels = result.labels()
        as_said = labels.dtype == torch.int64 and labels.shape == (3, n)
        expect(as_said, "labels() must be int64 of shape [B, N].")
        outputs = result.pool(view.x).shape[1]
        expect((labels < outputs).all() and (labels >= -1).all(), "Labels must lie between -1 and keep - 1.")
        value = result.value if isinstance(result, Mix) and result.value is not None else view.x
        product = torch.matmul(result.matrix().to(value.dtype), value)
        same = torch.allclose(product, result.pool(view.x), atol=1e-4)
        expect(same or not result.linear, "matrix() @ x differs from pool(x).")


@check
def check_mass(cls: type[Reducer]) -> None:
    """Sizes stay positive, and patches sum to those that were not dropped."""
    for view, reducer in runs(cls):
        result = decide(reducer, view)
        sizes = result.sizes(view.size)
        expect((sizes > 0).all() or reducer.adaptive(), "An output stands for no patch at all.")
        held = (view.size * (result.labels() >= 0)).sum(1)
        carried = result.carry(view.size.unsqueeze(-1)).squeeze(-1)
        expect(
            torch.allclose(carried.sum(1), held, atol=1e-3),
            "Sizes do not sum to the patches that were kept or merged.",
        )
        expect(softened(result) or torch.allclose(sizes, carried), "Sizes are not what is carried.")


@check
def check_unmerge(cls: type[Reducer]) -> None:
    """unmerge gives every input token a row, zero where it was dropped."""
    for view, reducer in runs(cls):
        result = reducer(view)
        restored = result.unmerge(result.pool(view.x))
        expect(restored.shape == view.x.shape, "unmerge must give back [B, N, C].")
        expect((restored[result.labels() < 0] == 0).all(), "Dropped tokens must come back as zeros.")


@check
def check_view_untouched(cls: type[Reducer]) -> None:
    """The view is not edited."""
    view = make_view()
    before = copy.deepcopy((view.x, view.size, view.prefix, view.attention))
    build(cls, 16, reachable(cls, 16)[0])(view)
    same = all(torch.equal(a, b) for a, b in zip((view.x, view.size, view.prefix), before[:3], strict=True))  # type: ignore[arg-type]
    expect(same, "The reducer edited its view.")
    assert view.attention
    assert before[3]
    expect(
        all(torch.equal(getattr(view.attention, f), getattr(before[3], f)) for f in "qkv"),
        "The reducer edited the attention.",
    )


@check
def check_keeps_nothing(cls: type[Reducer]) -> None:
    """A call leaves nothing behind in the reducer, which threads share."""
    reducer = build(cls, 16, reachable(cls, 16)[0])
    modules = list(reducer.modules())
    before = [{**vars(module), **module._buffers, **module._modules} for module in modules]
    values = {name: value.clone() for name, value in reducer.state_dict().items()}
    reducer(make_view())
    for module, old in zip(modules, before, strict=True):
        new = {**vars(module), **module._buffers, **module._modules}
        expect(
            new.keys() == old.keys() and all(new[key] is old[key] for key in new),
            f"forward left something in {type(module).__name__}; use local variables.",
        )
    after = reducer.state_dict()
    same = all(torch.equal(after[name], value) for name, value in values.items())
    expect(same, "forward changed a parameter or buffer; use local variables.")
