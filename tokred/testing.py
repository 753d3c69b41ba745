"""The battery of checks that every registered method must pass, for third parties' methods too.

    tokred check mypackage.mymethod:MyReducer

In a test file: `pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)` and `check(MyReducer)`.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from torch import Tensor

from tokred.core.backbone import num_heads, num_patches
from tokred.core.options import default_options
from tokred.core.plan import Plan, uniform_counts
from tokred.core.reducer import Attention, Reducer, View
from tokred.core.reduction import Merge, Mix, Reduction, compose, unmerge
from tokred.core.rng import Rng
from tokred.core.rules import broken_rule
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.models.residual import scale_residual

Check = Callable[[type[Reducer]], None]

CHECKS: dict[str, Check] = {}
DIM, HEADS = 48, 3


def check_reducer(cls: type[Reducer], progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Run all checks on a class and return the problems by name of the check; an empty mapping is a pass."""
    problems = {}
    for name, check in CHECKS.items():
        progress(name)
        try:
            check(cls)
        except Exception as error:  # a battery reports whatever a method does
            problems[name] = (
                str(error)
                if isinstance(error, AssertionError | TokredError) and str(error)
                else f"{type(error).__name__}: {error}"
            )
    return problems


def make_view(
    batch: int = 3,
    n: int = 16,
    prefix: int = 1,
    seed: int = 0,
    *,
    layer: int = 4,
    has_cls: bool = True,
    **kwargs: Any,
) -> View:
    """A random view without near-ties: [batch, n, 48] tokens after `prefix` prefix tokens, 3 heads."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float32)

    q, k, v = (normal(batch, HEADS, prefix + n, DIM // HEADS) for _ in range(3))
    size = torch.randint(1, 4, (batch, n), generator=rng).float()
    view = View(
        x=normal(batch, n, DIM),
        prefix=normal(batch, prefix, DIM),
        layer=layer,
        has_cls=has_cls,
        grid=(-(-n // 4), 4),
        rng=Rng(0, torch.arange(batch)),
        attention=Attention(q, k, v, (DIM // HEADS) ** -0.5),
    )
    view.__dict__.update({"size": size, **kwargs})
    return view


def map_view(view: View, change: Callable[[Tensor], Tensor]) -> View:
    """A view whose tensors have been changed: sliced, cast, moved."""
    a, images = view.attention, view.rng.images
    changed = replace(
        view,
        x=change(view.x),
        prefix=change(view.prefix),
        rng=replace(view.rng, images=None if images is None else change(images)),
        attention=a and replace(a, q=change(a.q), k=change(a.k), v=change(a.v)),
    )
    changed.__dict__["size"] = change(view.size)
    return changed


@lru_cache(maxsize=8)
def tiny_vit(**options: Any) -> Any:
    """A timm ViT of depth 4 and width 48 on 6 x 6 patches, with fixed random weights."""
    defaults = {
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": DIM,
        "depth": 4,
        "num_heads": HEADS,
        "num_classes": 10,
    }
    model = timm.create_model("vit_tiny_patch16_224", **{**defaults, **options}).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.1 * torch.randn(parameter.shape, generator=rng))
    return model


def tiny_plan(cls: type[Reducer], model: Any, stages: tuple[int, ...] = (2, 3)) -> Plan:
    """A plan that removes about a third of the tokens at each stage, or one at a threshold of 0.5."""
    n = num_patches(model)
    knob = {"rate": 0.7, "removed": n // 4, "threshold": 0.5}[cls.knob]
    return Plan(cls, stages, uniform_counts(cls, n, len(stages), knob), knob=knob)


def build(cls: type[Reducer], n: int, keep: int) -> Reducer:
    """A reducer with default options and deterministic parameters."""
    reducer = cls(n, keep, DIM, HEADS)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return reducer.eval()


def decide(reducer: Reducer, view: View) -> Reduction:
    """The decision of a reducer as the framework applies it."""
    decision = reducer(view)
    return decision.trimmed() if reducer.adaptive() and isinstance(decision, Merge) else decision


def reduced(cls: type[Reducer], model: Any) -> ReducedViT:
    """A tiny reduced model of a class, registered or not."""
    made = ReducedViT(model, tiny_plan(cls, model))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for stage in made.stages.values():
            for parameter in stage.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return made.eval()


def check(function: Check) -> Check:
    """Add a function to the battery under its own name."""
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


def expect(condition: bool | Tensor, message: str) -> None:
    """Fail with a message; unlike an assert it also works under python -O."""
    if not bool(condition):
        raise AssertionError(message)


def _keeps(cls: type[Reducer], n: int) -> list[int]:
    """A few counts that the class can reach: many, half, the fewest."""
    return sorted(
        {max(cls.floor(n), keep) for keep in (n - 1, n - n // 3, n - n // 2, cls.floor(n)) if keep < n}
    )


def _runs(cls: type[Reducer]) -> list[tuple[View, Reducer]]:
    """Views and reducers over even, odd and small counts and 1, 2 and 5 prefix tokens."""
    shapes = [(16, 1), (15, 1), (17, 2), (16, 5), (7, 2), (3, 1)]
    return [
        (make_view(n=n, prefix=prefix, seed=n), build(cls, n, keep))
        for n, prefix in shapes
        for keep in _keeps(cls, n)
    ]


@check
def check_documented(cls: type[Reducer]) -> None:
    """The docstring starts with a sentence, and options are keyword arguments with defaults."""
    first = inspect.cleandoc(cls.__doc__ or "").splitlines()[:1]
    expect(
        bool(first) and first[0].endswith("."),
        "The docstring must start with one sentence that says what the method does.",
    )
    positional = [
        p.name
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
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
    expect(
        named, f'groups must be a tuple of names such as ("merging", "training-free"), not {cls.groups!r}.'
    )
    wrong = "training-free" if build(cls, 16, _keeps(cls, 16)[0]).learned else "learned"
    expect(wrong not in cls.groups, f"By its parameters the method is not {wrong}, as its groups say.")


@check
def check_output_count(cls: type[Reducer]) -> None:
    """Exactly `keep` tokens come out, finite, for even, odd and small counts."""
    for view, reducer in _runs(cls):
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
    for view, reducer in _runs(cls):
        n, result = reducer.n, decide(reducer, view)
        keep = None if reducer.adaptive() else reducer.keep
        rule = broken_rule(result, 3, n, keep, view.valid)
        expect(not rule, rule)
        labels = result.labels()
        expect(
            labels.dtype == torch.int64 and labels.shape == (3, n), "labels() must be int64 of shape [B, N]."
        )
        outputs = result.pool(view.x).shape[1]
        expect((labels < outputs).all() and (labels >= -1).all(), "Labels must lie between -1 and keep - 1.")
        value = result.value if isinstance(result, Mix) and result.value is not None else view.x
        product = torch.matmul(result.matrix().to(value.dtype), value)
        same = torch.allclose(product, result.pool(view.x), atol=1e-4)
        expect(same or not result.linear, "matrix() @ x differs from pool(x).")


def _softened(reduction: Reduction) -> bool:
    """Whether tokens count for other sizes than their patches."""
    return isinstance(reduction, Merge) and reduction.mass is not None


@check
def check_mass(cls: type[Reducer]) -> None:
    """Sizes stay positive, and patches sum to those that were not dropped."""
    for view, reducer in _runs(cls):
        result = decide(reducer, view)
        sizes = result.sizes(view.size)
        expect((sizes > 0).all() or reducer.adaptive(), "An output stands for no patch at all.")
        held = (view.size * (result.labels() >= 0)).sum(1)
        carried = result.carry(view.size.unsqueeze(-1)).squeeze(-1)
        expect(
            torch.allclose(carried.sum(1), held, atol=1e-3),
            "Sizes do not sum to the patches that were kept or merged.",
        )
        expect(_softened(result) or torch.allclose(sizes, carried), "Sizes are not what is carried.")


@check
def check_unmerge(cls: type[Reducer]) -> None:
    """unmerge gives every input token a row, zero where it was dropped."""
    for view, reducer in _runs(cls):
        result = reducer(view)
        restored = result.unmerge(result.pool(view.x))
        expect(restored.shape == view.x.shape, "unmerge must give back [B, N, C].")
        expect((restored[result.labels() < 0] == 0).all(), "Dropped tokens must come back as zeros.")


@check
def check_view_untouched(cls: type[Reducer]) -> None:
    """The view is not edited."""
    view = make_view()
    before = copy.deepcopy((view.x, view.size, view.prefix, view.attention))
    build(cls, 16, _keeps(cls, 16)[0])(view)
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
    reducer = build(cls, 16, _keeps(cls, 16)[0])
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
    expect(
        all(torch.equal(after[name], value) for name, value in values.items()),
        "forward changed a parameter or buffer; use local variables.",
    )


@check
def check_deterministic(cls: type[Reducer]) -> None:
    """Twice the same view gives the same result, and global random numbers are not touched."""
    reducer, view = build(cls, 16, _keeps(cls, 16)[0]), make_view()
    state = torch.get_rng_state()
    first, second = reducer(view).pool(view.x), reducer(map_view(view, Tensor.clone)).pool(view.x)
    expect(torch.equal(first, second), "Two runs differ.")
    expect(torch.equal(state, torch.get_rng_state()), "The reducer drew global random numbers; use view.rng.")


@check
def check_batch_slice(cls: type[Reducer]) -> None:
    """An image's result does not depend on the rest of its batch."""
    for view, reducer in _runs(cls):
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
    for view, reducer in _runs(cls):
        moved = map_view(view, lambda tensor: tensor[order])
        after, before = decide(reducer, moved).pool(moved.x), decide(reducer, view).pool(view.x)
        expect(torch.allclose(after, before[order], atol=1e-5), "A permuted batch differs.")


@check
def check_ties(cls: type[Reducer]) -> None:
    """All tokens alike, or all zero, still give `keep` finite tokens."""
    reducer = build(cls, 16, _keeps(cls, 16)[0])
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
    reducer = build(cls, 16, _keeps(cls, 16)[0])
    pooled = reducer(view).pool(view.x)
    expect(
        pooled.dtype == torch.bfloat16 and pooled.isfinite().all(),
        f"bfloat16 in gave {pooled.dtype} out, or values that are no numbers.",
    )


@check
def check_meta(cls: type[Reducer]) -> None:
    """The reducer runs on the meta device: shapes depend on shapes only, without host synchronisation."""
    meta = map_view(make_view(), lambda tensor: tensor.to("meta"))
    reducer = build(cls, 16, _keeps(cls, 16)[0]).to("meta")
    decision = reducer(meta)
    count = decision.m if reducer.adaptive() else reducer.keep  # which the framework trims
    expect(decision.pool(meta.x).shape == (3, count, DIM), "The shape on the meta device differs.")


@check
def check_copies(cls: type[Reducer]) -> None:
    """A reducer survives deepcopy and pickle."""
    reducer, view = build(cls, 16, _keeps(cls, 16)[0]), make_view()
    want = reducer(view).pool(view.x)
    expect(torch.equal(copy.deepcopy(reducer)(view).pool(view.x), want), "A deep copy differs.")
    expect(
        torch.equal(pickle.loads(pickle.dumps(reducer))(view).pool(view.x), want), "A pickled copy differs."
    )


@check
def check_gradients(cls: type[Reducer]) -> None:
    """Gradients reach the tokens, and in training every parameter of a learned method."""
    view = make_view()
    view.x.requires_grad_()
    reducer = build(cls, 16, _keeps(cls, 16)[0])
    reducer(view).pool(view.x).square().sum().backward()
    expect(
        view.x.grad is not None and view.x.grad.isfinite().all() and view.x.grad.any(),
        "No gradient reaches the tokens.",
    )
    model = reduced(cls, tiny_vit())
    model.stages.train()
    state = model.run(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)))
    model.logits(state).square().sum().backward()
    without = [
        name
        for name, parameter in model.stages.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    expect(not without, f"No gradient reaches {without}.")


@check
def check_nested(cls: type[Reducer]) -> None:
    """A reducer built for more tokens out does with its first rows what one built for fewer does."""
    view, (few, *_) = make_view(), _keeps(cls, 16)
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


@check
def check_empty_plan(cls: type[Reducer]) -> None:
    """Keeping every token gives the dense model's logits, bit for bit."""
    if cls.adaptive():
        return  # how many stay depends on the image
    model = tiny_vit()
    n = num_patches(model)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    plan = Plan(cls, (2, 3), (n, n))
    with torch.no_grad():
        expect(
            torch.equal(ReducedViT(model, plan)(images), model(images)), "An empty plan changes the logits."
        )


@check
def check_models(cls: type[Reducer]) -> None:
    """The method runs with 1, 2 and 5 prefix tokens, an odd grid, and no CLS token unless it needs one."""
    for options in (
        {},
        {"reg_tokens": 1},
        {"reg_tokens": 4},
        {"global_pool": "avg"},
        {"init_values": 0.1, "qk_norm": True},
        {"img_size": 56},
    ):
        model = tiny_vit(**options)
        images = torch.randn(2, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
        wrapped = reduced(cls, model)
        with torch.no_grad():
            state = wrapped.run(images)
        tokens = tiny_plan(cls, model).tokens[-1]
        if cls.adaptive():
            tokens = int(state.counts[:, -1].max())
        expect(
            state.x.shape[1] == model.num_prefix_tokens + tokens,
            f"{options} ends with {state.x.shape[1]} tokens.",
        )
        expect(wrapped.logits(state).isfinite().all(), f"{options} gives logits that are no numbers.")
        source = compose(state.reductions)
        agree = state.size is not None and torch.allclose(source.sum(2), state.size, atol=1e-3)
        softened = any(map(_softened, state.reductions))
        expect(agree or softened, "The source map does not agree with the sizes.")
        expect(
            unmerge(state.reductions, state.x[:, -tokens:]).shape[1] == num_patches(model),
            "unmerge over stages lost patches.",
        )
    model = tiny_vit(class_token=False, global_pool="avg")
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    probe = cls(16, _keeps(cls, 16)[0], DIM, HEADS)
    try:
        with torch.no_grad():
            expect(
                reduced(cls, model)(images).isfinite().all(),
                "A model without CLS token gives logits that are no numbers.",
            )
    except TokredError:
        expect(probe.needs_cls, "The method is refused without a CLS token but does not state needs_cls.")
    else:
        expect(not probe.needs_cls, "The method states needs_cls but runs without one.")


@check
def check_model_batch(cls: type[Reducer]) -> None:
    """Whole models: a batch of 1 equals its slice, and the backbone is left alone."""
    model = tiny_vit()
    keys = list(model.state_dict())
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    wrapped = reduced(cls, model)
    with torch.no_grad():
        whole, alone = wrapped(images), wrapped(images[1:2])
        expect(torch.allclose(whole[1:2], alone, atol=1e-5), "A batch of 1 differs from its slice.")
    expect(list(model.state_dict()) == keys and num_heads(model) == HEADS, "The backbone was changed.")


def residual_invariant(cls: type[Reducer], factors: tuple[float, ...] = (1 / 8, 8.0)) -> bool:
    """Whether multiplying the residual stream of a model leaves the reduced model's logits as they are.

    A model computes the same at any scale of its residual stream, so what a method makes of it is a property
    of the weights only if the method does not look at that scale. No method has to be invariant.

    Args:
        cls: The method.
        factors: What the residual stream is multiplied by.
    """
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    logits = []
    for factor in (1.0, *factors):
        model = copy.deepcopy(tiny_vit())
        scale_residual(model, factor)
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.eps *= factor**2  # else the model itself would not be invariant
        with torch.no_grad():
            logits.append(reduced(cls, model)(images))
    return all(torch.allclose(logits[0], other, atol=1e-2) for other in logits[1:])
