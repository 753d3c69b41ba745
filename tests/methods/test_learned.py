"""The learned methods against plain NumPy, POT and closed forms."""

import math

import numpy as np
import ot
import ot.batch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tokred.core import registry
from tokred.core.attention import call_attention
from tokred.core.plan import Plan
from tokred.core.reduction import Keep, Mask
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.methods.dynamicvit import _sample, _shift
from tokred.methods.sinkhorn import transport
from tokred.testing import DIM, HEADS, make_view, tiny_vit


def made(name, n=16, keep=9, **options):
    """A reducer with random parameters of moderate size."""
    reducer = registry.get(name)(n, keep, DIM, HEADS, **options).eval()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=rng) + (1.0 if parameter.ndim < 2 else 0.0)
            )
    return reducer


def numbers(tensor):
    return tensor.detach().double().numpy()


def layer_norm(x, norm):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + norm.eps) * numbers(
        norm.weight
    ) + numbers(norm.bias)


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", DIM**-0.5)])
@pytest.mark.parametrize("value", ["normalized", "tokens"])
def test_patchmerger_is_attention_of_queries_over_normalised_tokens(scale, factor, value):
    view, reducer = make_view(), made("patchmerger", scale=scale, value=value)
    x = numbers(view.x)
    y = layer_norm(x, reducer.norm)
    weight = softmax(factor * np.einsum("kc,bnc->bkn", numbers(reducer.queries), y), -1)
    expected = np.einsum("bkn,bnc->bkc", weight, y if value == "normalized" else x)
    assert np.allclose(numbers(reducer(view).pool(view.x)), expected, atol=1e-5)
    assert np.allclose(numbers(reducer(view).matrix().sum(-1)), 1, atol=1e-6)
    assert reducer.norm.eps == 1e-5


def test_patchmerger_output_order_is_that_of_its_queries():
    view, reducer = make_view(), made("patchmerger")
    before, order = reducer(view).pool(view.x), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reducer.queries.copy_(reducer.queries[order].clone())
    assert torch.allclose(reducer(view).pool(view.x), before[:, order], atol=1e-6)


def test_sit_is_a_softmax_over_tokens_of_two_layers():
    view, reducer = make_view(), made("sit")
    x = numbers(view.x)
    hidden = gelu(
        layer_norm(x, reducer.norm) @ numbers(reducer.hidden.weight).T + numbers(reducer.hidden.bias)
    )
    scores = numbers(reducer.scale) * (hidden @ numbers(reducer.score.weight).T + numbers(reducer.score.bias))
    weight = softmax(scores.transpose(0, 2, 1), -1)
    assert np.allclose(numbers(reducer(view).pool(view.x)), weight @ x, atol=1e-5)
    assert (weight >= 0).all()


def test_sit_at_temperature_zero_gives_the_mean_token():
    view, reducer = make_view(), made("sit")
    with torch.no_grad():
        reducer.scale.zero_()
    assert torch.allclose(
        reducer(view).pool(view.x), view.x.mean(1, keepdim=True).expand(-1, 9, -1), atol=1e-5
    )


@pytest.mark.parametrize("name", ["patchmerger", "sinkhorn", "sit"])
def test_mixtures_do_not_depend_on_the_order_of_the_tokens(name):
    view, reducer = make_view(), made(name)
    before, order = reducer(view).pool(view.x), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    view.x = view.x[:, order]
    assert torch.allclose(reducer(view).pool(view.x), before, atol=1e-5)


def cosines(view, reducer):
    x, v = numbers(view.x), numbers(reducer.centers)
    x, v = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, v))
    return np.einsum("kc,bnc->bkn", v, x), x


@pytest.mark.parametrize("epsilon", [1.0, 0.05])
def test_sinkhorn_is_the_published_loop(epsilon):
    view, reducer = make_view(), made("sinkhorn", epsilon=epsilon)
    affinity, x = cosines(view, reducer)
    z, k, n = affinity / epsilon, 9, 16
    u, v = np.zeros((3, k)), np.zeros((3, n))
    for _ in range(3):
        for b in range(3):
            for i in range(k):
                u[b, i] = -np.log(k + n) - np.log(np.exp(z[b, i] + v[b]).sum())
            for j in range(n):
                v[b, j] = -np.log(k + n) - np.log(np.exp(z[b, :, j] + u[b]).sum())
    weight = np.exp(z + u[:, :, None] + v[:, None] + np.log(k + n))
    assert np.allclose(numbers(reducer(view).matrix()), weight, atol=1e-5)
    assert np.allclose(numbers(reducer(view).pool(view.x)), weight @ x, atol=1e-5)
    assert np.allclose(weight.sum(1), 1)  # every token is shared out once


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.floats(0.05, 2.0))
def test_transport_equals_pots_batched_solver(k, n, iterations, epsilon):
    affinity = (
        torch.randn(3, k, n, dtype=torch.float64, generator=torch.Generator().manual_seed(k + 13 * n))
        / epsilon
    )
    mass = torch.full((), 1 / (k + n), dtype=torch.float64)
    solved = ot.batch.bregman_log_projection_batch(
        affinity, mass.expand(3, k), mass.expand(3, n), max_iter=iterations, tol=-1.0
    )
    assert torch.allclose(transport(affinity, iterations), solved["T"] * (k + n), atol=1e-9)


def test_sinkhorn_tends_to_the_balanced_plan_of_pot():
    view, reducer = make_view(), made("sinkhorn", epsilon=0.2, iterations=100)
    affinity, _ = cosines(view, reducer)
    for row in range(3):
        plan = ot.sinkhorn(
            np.full(9, 1 / 9), np.full(16, 1 / 16), -affinity[row], reg=0.2, numItermax=20_000, stopThr=1e-12
        )
        assert np.allclose(numbers(reducer(view).matrix()[row]), 16 * plan, atol=1e-4)


def test_sinkhorn_mean_averages_the_tokens_themselves():
    view, reducer = make_view(), made("sinkhorn", output="mean", epsilon=0.1)
    weight = numbers(reducer(view).matrix())
    assert np.allclose(weight.sum(-1), 1, atol=1e-5)
    assert np.allclose(numbers(reducer(view).pool(view.x)), weight @ numbers(view.x), atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [("epsilon", 0.0), ("epsilon", math.inf), ("iterations", 0)])
def test_sinkhorn_refuses_what_it_cannot_solve(option, value):
    with pytest.raises(TokredError, match=f"sinkhorn.{option} must "):
        registry.get("sinkhorn")(16, 9, DIM, HEADS, **{option: value})


def probabilities(reducer, view, alive, mean):
    """DynamicViT's predictor in NumPy: log-probabilities to stay and to go."""
    norm, linear = reducer.embed[0], reducer.embed[1]
    y = gelu(layer_norm(numbers(view.x), norm) @ numbers(linear.weight).T + numbers(linear.bias))
    half = DIM // 2
    total, count = np.einsum("bn,bnc->bc", alive, y[..., half:]), alive.sum(1, keepdims=True)
    average = total / count + 1e-6 if mean == "quotient" else total / (count + 1e-6)
    z = np.concatenate([y[..., :half], np.repeat(average[:, None], y.shape[1], 1)], -1)
    for index in (0, 2, 4):
        z = z @ numbers(reducer.score[index].weight).T + numbers(reducer.score[index].bias)
        z = gelu(z) if index < 4 else z
    return np.log(softmax(z, -1))


@pytest.mark.parametrize("mean", ["quotient", "denominator"])
def test_dynamicvit_keeps_the_most_probable_tokens_in_order(mean):
    view, reducer = make_view(), made("dynamicvit", mean=mean)
    expected = probabilities(reducer, view, np.ones((3, 16)), mean)[..., 0]
    decision = reducer(view)
    assert isinstance(decision, Keep)
    assert np.array_equal(decision.index.numpy(), np.argsort(-expected, axis=1)[:, :9])
    view.alive = (torch.arange(16) % 3 > 0).float().expand(3, -1)
    stay, go = np.moveaxis(probabilities(reducer, view, numbers(view.alive), mean), -1, 0)
    assert np.allclose(numbers(reducer._predict(view.x, view.alive)), stay - go, atol=1e-5)


def test_dynamicvit_ranks_tokens_whose_probabilities_round_to_one():
    view, reducer = make_view(), made("dynamicvit")
    before = reducer(view).index
    with torch.no_grad():
        reducer.score[4].bias[0] += 60.0
    assert torch.equal(reducer(view).index[:, :4], before[:, :4])


def test_gumbel_samples_have_the_predicted_frequency_and_the_soft_gradient():
    logit = torch.linspace(-3, 3, 7).unsqueeze(-1).repeat(1, 20_000).requires_grad_()
    both = torch.stack([logit, torch.zeros_like(logit)], -1).log_softmax(-1)
    uniform = torch.rand(7, 20_000, generator=torch.Generator().manual_seed(0))
    sample = _sample(both[..., 0] - both[..., 1], uniform)
    assert set(sample.detach().unique().tolist()) == {0.0, 1.0}
    error = (sample.mean(1) - torch.sigmoid(logit[:, 0])).abs()
    assert (error < 5 * 0.5 / 20_000**0.5).all()
    sample.sum().backward()
    soft = torch.sigmoid(logit.detach() + uniform.log() - (1 - uniform).log())
    assert torch.allclose(logit.grad, soft * (1 - soft), atol=1e-4)
    assert _sample(logit.detach(), torch.zeros_like(uniform)).isfinite().all()


def test_a_dropped_token_stays_dropped_and_the_ratio_loss_is_its_formula():
    view, reducer = make_view(), made("dynamicvit").train()
    view.alive = (torch.arange(16) < 8).float().expand(3, -1)
    decision = reducer(view)
    assert isinstance(decision, Mask)
    assert (decision.alive[:, 8:] == 0).all()
    share = numbers(decision.alive).mean(1)
    assert reducer.penalty(decision).item() == pytest.approx(2 * ((share - 9 / 16) ** 2).mean(), abs=1e-6)
    exact = Mask((torch.arange(16) < 9).float().expand(3, -1))
    assert reducer.penalty(exact).item() == 0


def test_log_odds_of_a_fit_for_any_budget_expect_the_drawn_share_to_stay():
    rng = torch.Generator().manual_seed(0)
    alive = (torch.rand(4, 30, generator=rng) < 0.8).float()
    for spread in (0.01, 3.0, 300.0):
        log_odds = (spread * torch.randn(4, 30, generator=rng) + 50).requires_grad_()
        shifted = _shift(log_odds, alive, 9)
        kept = (alive * torch.sigmoid(shifted)).sum(1)
        torch.testing.assert_close(kept, torch.full((4,), 9.0), rtol=1e-3, atol=1e-3)
        assert (shifted.argsort(1) == log_odds.argsort(1)).all()
        torch.testing.assert_close(_shift(log_odds + 7, alive, 9), shifted, rtol=1e-4, atol=1e-4)
        (kept.sum()).backward()
        assert log_odds.grad.abs().max() < 1e-3  # whatever moves, so many stay
    few = _shift(torch.zeros(1, 5), torch.tensor([[1.0, 0, 0, 0, 0]]), 3)  # fewer are left than shall stay
    assert few.isfinite().all()
    assert torch.sigmoid(few[0, 0]) > 0.99


def test_a_fit_for_any_budget_shifts_its_samples_and_nothing_else():
    view, reducer = make_view(), made("dynamicvit")
    order = reducer(view).index
    with torch.no_grad():
        reducer.score[-1].bias.copy_(torch.tensor([500.0, 0.0]))  # all would stay, without any gradient
    assert torch.equal(reducer(view).index, order)
    reducer.train()
    assert reducer(view).alive.min() == 1
    reducer.any_budget = True
    decision = reducer(view)
    assert decision.alive.min() == 0
    decision.alive[:, ::2].sum().backward()
    assert reducer.embed[1].weight.grad.abs().max() > 0
    reducer.eval()
    assert torch.equal(reducer(view).index, order)


@pytest.mark.parametrize("iterations", [1, 3, 12])
def test_pot_solves_the_same_transport(iterations):
    view = make_view()
    plans = []
    for solver in ("torch", "pot"):
        reducer = made("sinkhorn", epsilon=0.1, iterations=iterations, solver=solver)
        view.x.requires_grad_().grad = None
        mix = reducer(view)
        mix.pool(view.x).square().sum().backward()
        plans.append((mix.weight, view.x.grad, reducer.centers.grad))
    for ours, theirs in zip(*plans, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_masked_attention_with_all_alive_is_the_ordinary_one():
    attn = tiny_vit().blocks[0].attn
    x = torch.randn(2, 11, DIM, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(call_attention(attn, x, alive=torch.ones(2, 11))[0], attn(x), atol=1e-5)


def test_masked_softmax_is_the_published_formula():
    attn = tiny_vit().blocks[0].attn
    x = 3 * torch.randn(2, 11, DIM, generator=torch.Generator().manual_seed(0))
    alive = (torch.rand(2, 11, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    q, k, v = (
        numbers(part) for part in attn.qkv(x).reshape(2, 11, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
    )
    z = q @ k.transpose(0, 1, 3, 2) * attn.scale
    mask = numbers(alive)[:, None, None, :]
    w = np.exp(z - z.max(-1, keepdims=True)) * (mask + (1 - mask) * np.eye(11))
    a = (w + 1e-6 / 11) / (w.sum(-1, keepdims=True) + 1e-6)
    expected = torch.as_tensor((a @ v).transpose(0, 2, 1, 3).reshape(2, 11, DIM)).float()
    assert torch.allclose(call_attention(attn, x, alive=alive)[0], attn.proj(expected), atol=1e-4)


def test_a_masked_network_is_the_shortened_one_to_cls():
    """Kept tokens see what is kept: dropping for good at inference is what training by masks prepares for."""
    model, images = tiny_vit(), torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    reduced = ReducedViT(model, Plan("dynamicvit", (2, 3), (24, 15)))
    state = reduced.run(images)
    gathered = reduced.logits(state)
    first = state.reductions[0].labels() >= 0
    final = torch.zeros(2, 36).scatter(
        1, state.reductions[0].index, (state.reductions[1].labels() >= 0).float()
    )
    stages = reduced.stage_list()
    for stage, alive in zip(stages, (first.float(), final), strict=True):
        stage.reducer.forward = lambda view, alive=alive: Mask(alive)
    masked_state = reduced.run(images)
    assert masked_state.x.shape[1] == 37
    assert torch.allclose(reduced.logits(masked_state), gathered, atol=1e-4)


def test_dpcknn_learned_weights_are_exponentials_of_a_linear_score():
    view, equal, learned = make_view(), made("dpcknn"), made("dpcknn", weights="learned")
    labels = learned(view).labels()
    assert torch.equal(labels, equal(view).labels())  # the weights do not move the clusters
    x, p = (
        numbers(view.x),
        np.exp(numbers(view.x) @ numbers(learned.score.weight)[0] + numbers(learned.score.bias)),
    )
    expected = np.zeros((3, 9, DIM))
    for b in range(3):
        for j in range(9):
            members = numbers(labels[b]) == j
            expected[b, j] = (p[b, members, None] * x[b, members]).sum(0) / p[b, members].sum()
    assert np.allclose(numbers(learned(view).pool(view.x)), expected, atol=1e-5)
    with torch.no_grad():
        learned.score.weight.zero_()
    assert torch.allclose(learned(view).pool(view.x), equal(view).pool(view.x), atol=1e-6)
    with torch.no_grad():
        learned.score.weight.fill_(1e4)
    assert learned(view).pool(view.x).isfinite().all()


@pytest.mark.parametrize("name", ["patchmerger", "sit", "sinkhorn"])
def test_calibration_brings_mixtures_to_the_scale_of_the_tokens(name):
    view, reducer = make_view(batch=8), registry.get(name)(16, 9, DIM, HEADS)
    view.x = 20 * view.x + torch.linspace(-5, 5, DIM)
    with torch.no_grad():
        reducer.calibrate(view)
        pooled, weight = reducer(view).pool(view.x), reducer(view).matrix()
    if name == "patchmerger":
        assert F.mse_loss(reducer.norm(view.x), view.x) < 0.1 * view.x.var()
    if name == "sinkhorn":
        assert torch.allclose(reducer.centers.norm(dim=-1), torch.ones(9), atol=1e-5)
    else:
        assert (weight.amax(-1) > 2 / 16).float().mean() > 0.8  # outputs differ from the mean token
        assert pooled.std() > 0.3 * view.x.std()


def test_unfitted_parameters_are_a_function_of_the_seed_and_leave_global_random_numbers_alone():
    model = tiny_vit()
    state = torch.get_rng_state()
    first, second = (ReducedViT(model, Plan("sit", (2, 3), (24, 15)), seed=1).state_dict() for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = ReducedViT(model, Plan("sit", (2, 3), (24, 15)), seed=2).state_dict()
    assert not torch.equal(
        first["reducers.pre2.reducer.score.weight"], other["reducers.pre2.reducer.score.weight"]
    )
