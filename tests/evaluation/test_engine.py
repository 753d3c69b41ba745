"""One pass for all methods equals separate runs, and one failing method does not take the others along."""

import copy
import re
import threading
import time
import types

import numpy as np
import pytest
import torch

import tokred
from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import match
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep, Merge, Mix
from tokred.core.vit import ReducedViT
from tokred.data import loading, preprocessing, sources
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.engine import Pass, _isolated, dense_model, evaluate
from tokred.evaluation.lanes import Clock
from tokred.evaluation.predictions import Evaluation
from tokred.evaluation.running import running_scores
from tokred.models import zoo
from tokred.testing import tiny_plan, tiny_vit
from tokred.utils.devices import resolve_device, resolve_precision


def batches(n=10, size=4, seed=0):
    images = torch.randn(n, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % 10
    return [
        Batch(images[i : i + size], labels[i : i + size], torch.arange(n)[i : i + size])
        for i in range(0, n, size)
    ]


def models(names, stages=(2, 3)):
    return {name: ReducedViT(tiny_vit(), tiny_plan(registry.get(name), tiny_vit(), stages)) for name in names}


def arrays(outcomes):
    return outcomes.prediction, outcomes.top5, outcomes.kl, outcomes.nll


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_pass_equals_separate_runs_bit_for_bit(threads, monkeypatch):
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = models(registry.names())
        one_pass = evaluate(dense_model(tiny_vit(), together.values()), together, batches(), 10)
        for name, model in models(registry.names()).items():
            alone = evaluate(dense_model(tiny_vit(), [model]), {name: model}, batches(), 10)
            for a, b in zip(arrays(one_pass.methods[name]), arrays(alone.methods[name]), strict=True):
                np.testing.assert_array_equal(a, b)
            # And against the model called as a user would, on the same batches.
            torch.set_num_threads(1)
            with torch.inference_mode():
                logits = torch.cat([_logits(model, images, index) for images, _, index, *_ in batches()])
            torch.set_num_threads(threads)
            np.testing.assert_array_equal(one_pass.methods[name].prediction, logits.argmax(1).numpy())
    finally:
        torch.set_num_threads(torch_threads)
    assert one_pass.labels.tolist() == [i % 10 for i in range(10)]


def test_a_model_with_a_backbone_of_its_own_starts_from_the_images():
    """As one that was fitted in full does."""
    own = copy.deepcopy(tiny_vit())
    with torch.no_grad():
        own.blocks[0].mlp.fc1.weight.mul_(-1)
    plan = tiny_plan(registry.get("kmedoids"), own)
    several = {"own": ReducedViT(own, plan), "shared": ReducedViT(tiny_vit(), plan)}
    result = evaluate(dense_model(tiny_vit(), several.values()), several, batches(), 10)
    assert not result.failed
    with torch.inference_mode():
        for name, model in several.items():
            logits = torch.cat([_logits(model, images, index) for images, _, index, *_ in batches()])
            np.testing.assert_array_equal(result.methods[name].prediction, logits.argmax(1).numpy())
    assert not np.array_equal(result.methods["own"].kl, result.methods["shared"].kl)


def _logits(model, images, index):
    return model.logits(model.advance(model.embed(images, index)))


def test_shared_states_give_the_very_logits_of_a_lone_model():
    for name, model in models(registry.names()).items():
        dense = dense_model(tiny_vit(), [model])
        images, _, index = batches()[0][:3]
        with torch.inference_mode():
            shared = dense.advance(dense.embed(images, index), stop=model.first_point)
            assert torch.equal(model.logits(model.advance(shared)), _logits(model, images, index)), name


@pytest.mark.slow
def test_another_batch_size_agrees():
    """To 1e-5 in logits, on real weights and images; near-ties between tokens may be decided otherwise."""
    model = zoo.load_shipped("deit_t").model.eval()
    source = sources.open_source().limit(12)
    prepared = preprocessing.prepare(model, crop_pct=1.0)
    images = next(loading.batches(source, prepared, [range(12)], 0)).images
    costs = CostTable(model)
    for name in ("lotm", "tome", "kmedoids", "topk", "sit"):
        reduced = tokred.ReducedViT(model, match(costs, name, 0.3).plan)
        with torch.inference_mode():
            whole, parts = (
                reduced(images),
                torch.cat([reduced(images[i : i + size]) for i, size in ((0, 1), (1, 4), (5, 7))]),
            )
        close = (whole - parts).abs().amax(1) < 1e-5 * whole.abs().max()
        assert close.sum() >= 11, name


def test_images_are_read_once_whatever_the_number_of_methods():
    reads = []

    def counted():
        for batch in batches():
            reads.append(len(batch.images))
            yield batch

    together = models(["lotm", "tome", "topk"])
    seen = []
    one = Pass(dense_model(tiny_vit(), together.values()), together, Evaluation.empty(10, together))
    one.run(counted(), lambda rows: seen.append(len(rows)))
    assert reads == seen == [4, 4, 2]


class Waits(Reducer):
    """Go on when somebody has looked at the scores so far."""

    looked = threading.Event()

    def forward(self, view):
        assert type(self).looked.wait(60)
        return Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)


def test_methods_have_scores_while_others_run_on_the_first_batch(monkeypatch):
    monkeypatch.setattr("tokred.evaluation.lanes._GLANCE", 0.01)
    early, late = Plan("topk", (2,), (20,)), Plan(Waits, (4,), (20,))
    together = {"early": ReducedViT(tiny_vit(), early), "late": ReducedViT(tiny_vit(), late)}
    source = types.SimpleNamespace(labelled=True, groups=np.arange(10))
    evaluation, seen = Evaluation.empty(10, together), []
    job = types.SimpleNamespace(evaluation=evaluation, source=source)

    def meanwhile():
        seen.append([name for name, *_ in running_scores(job)])
        if seen[-1]:
            Waits.looked.set()

    one_pass = Pass(dense_model(tiny_vit(), together.values()), together, evaluation)
    one_pass.run(batches(), meanwhile=meanwhile)
    assert ["early"] in seen
    assert {name for name, *_ in running_scores(job)} == {"baseline", "early", "late"}


class Explodes(Reducer):
    """Fail on the second batch."""

    calls = 0

    def forward(self, view):
        type(self).calls += 1
        if type(self).calls > 1:
            raise RuntimeError("boom\nwith details")
        return Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)


class Exits(Reducer):
    """End the program."""

    def forward(self, view):
        raise SystemExit(0)


class NotANumber(Reducer):
    """Give logits that are no numbers."""

    def forward(self, view):
        view.x.mul_(float("nan"))
        view.attention.k.mul_(0)
        return Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)


def test_a_failing_method_leaves_the_others_alone():
    plan = {"stages": (3,), "tokens": (20,)}
    good = {name: ReducedViT(tiny_vit(), Plan(name, **plan)) for name in ("topk", "tome")}
    bad = {
        "nan": ReducedViT(tiny_vit(), Plan(NotANumber, **plan)),
        "explodes": ReducedViT(tiny_vit(), Plan(Explodes, **plan)),
        "exits": ReducedViT(tiny_vit(), Plan(Exits, **plan)),
    }
    together = bad | good  # all begin at one state, the bad ones first
    result = evaluate(dense_model(tiny_vit(), together.values()), together, batches(), 10)
    assert set(result.failed) == set(bad)
    assert result.failed["explodes"].reason == "boom"
    assert result.failed["exits"].reason == "exits raises SystemExit."
    assert result.failed["nan"] == (
        0,
        "The output of nan is not finite, first in the reduction at layer 3, on images 0 to 3.",
    )
    alone = evaluate(dense_model(tiny_vit(), good.values()), good, batches(), 10)
    for name in good:
        np.testing.assert_array_equal(result.methods[name].kl, alone.methods[name].kl)


class Wrong(Reducer):
    """Return a decision that breaks a rule."""

    decide = None

    def forward(self, view):
        return type(self).decide(len(view.x))


def label(b, m, **changes):
    """Labels of 36 tokens in m groups, some of them changed."""
    values = torch.arange(36).expand(b, -1) % m
    for place, value in changes.items():
        values = values.clone()
        values[:, int(place[1:])] = value
    return values


@pytest.mark.parametrize(
    ("decide", "rule"),
    [
        (lambda b: Keep(torch.zeros(b, 20, dtype=torch.long), 36), "Keep must not repeat an index."),
        (
            lambda b: Keep(torch.arange(20).expand(b, -1) - 1, 36),
            "between 0 and 35 here, not go from -1 to 18",
        ),
        (
            lambda b: Keep(torch.arange(20).expand(b, -1) + 20, 36),
            "between 0 and 35 here, not go from 20 to 39",
        ),
        (
            lambda b: Keep(torch.arange(19).expand(b, -1), 36),
            r"of shape \[4, 20\] here, not int64 of shape \[4, 19\]",
        ),
        (
            lambda b: Keep(torch.arange(20).expand(b, -1), 36, label(b, 21)),
            "Keep's label must lie between -1 and 19",
        ),
        (lambda b: Merge(label(b, 19), 20), "Every group of a Merge needs a member."),
        (
            lambda b: Merge(label(b, 20, _3=20), 20),
            "Merge's label must lie between 0 and 19 here, not go from 0 to 20",
        ),
        (lambda b: Merge(label(b, 20, _3=-1), 20), "between 0 and 19 here, not go from -1 to 19"),
        (
            lambda b: Merge(label(b, 20, _3=-2), 20, drops=True),
            "between -1 and 19 here, not go from -2 to 19",
        ),
        (lambda b: Merge(label(b, 20, _19=-1), 20, drops=True), "Every group of a Merge needs a member."),
        (lambda b: Merge(label(b, 20), 20, reduce="max"), "must be mean, sum, norm or absmax, not max"),
        (
            lambda b: Merge(label(b, 20), 20, torch.ones(b, 36), reduce="absmax"),
            "A Merge by absmax takes no weight.",
        ),
        (
            lambda b: Merge(label(b, 20), 20, mass=torch.zeros(b, 36)),
            "mass must leave every group a positive size",
        ),
        (lambda b: Merge(label(b, 21), 21), "m = 20 groups here, not 21"),
        (lambda b: Mix(torch.ones(b, 36, 20)), r"shape \[4, 20, 36\] here, not \[4, 36, 20\]"),
        (lambda b: torch.ones(b, 20), "must return Keep, Merge or Mix, not Tensor"),
    ],
)
def test_a_decision_that_breaks_a_rule_fails_on_the_first_batch(decide, rule, monkeypatch):
    monkeypatch.setattr(Wrong, "decide", staticmethod(decide))
    wrong = {"wrong": ReducedViT(tiny_vit(), Plan(Wrong, (2,), (20,))), **models(["topk"])}
    result = evaluate(dense_model(tiny_vit(), wrong.values()), wrong, batches(), 10)
    assert set(result.failed) == {"wrong"}
    assert re.search(rule, result.failed["wrong"].reason)
    assert result.failed["wrong"].image == 0


class Remembers(Reducer):
    """Keep something on itself between two lines, as methods under development do."""

    def forward(self, view):
        self.score = view.x.square().sum(-1)
        time.sleep(0.002)
        return Keep(self.score.argsort(dim=1, stable=True)[:, : self.keep], self.n)


def test_batches_in_other_threads_have_reducers_of_their_own():
    model = {"remembers": ReducedViT(tiny_vit(), Plan(Remembers, (2, 3), (20, 10)))}
    many = [batch for _ in range(5) for batch in batches()]
    with_threads = evaluate(dense_model(tiny_vit(), model.values()), model, many, 10)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = evaluate(dense_model(tiny_vit(), model.values()), model, batches(), 10)
    torch.set_num_threads(before)
    np.testing.assert_array_equal(
        with_threads.methods["remembers"].prediction, alone.methods["remembers"].prediction
    )


class Buffered(Reducer):
    """Keep something in a buffer and in a part."""

    def __init__(self, n, keep, dim, heads):
        super().__init__(n, keep, dim, heads)
        self.register_buffer("score", torch.zeros(1))
        self.part = torch.nn.Linear(dim, 1)


def test_the_reducers_of_a_batch_share_parameters_and_nothing_else():
    model = ReducedViT(tiny_vit(), Plan(Buffered, (2,), (20,)))
    (stage,), (own,) = model.stage_list(), _isolated(model).stage_list()
    assert own.reducer.part.weight is stage.reducer.part.weight
    assert own.reducer.part is not stage.reducer.part
    own.reducer.score = torch.ones(1)
    own.reducer.part.state = "mine"
    assert stage.reducer.score == 0
    assert not hasattr(stage.reducer.part, "state")


def test_the_clock_counts_lanes_that_wait_for_images(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tokred.evaluation.lanes.time.monotonic", lambda: now[0])
    clock = Clock(2)
    now[0] = 4.0
    clock.waited(1.0, [3.0])  # one lane was done at 3, the other is busy
    now[0] = 10.0
    clock.waited(8.0, [7.0, 9.5])
    assert clock.share == (1 + 2 + 0.5) / 20


def test_a_dense_model_without_numbers_is_an_error():
    images, labels, index = batches()[0][:3]
    with pytest.raises(TokredError, match="check its weights"):
        evaluate(ReducedViT(tiny_vit()), {}, [Batch(images * float("nan"), labels, index)], 10)


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()

    def broken():
        yield batches()[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        evaluate(ReducedViT(tiny_vit()), {}, broken(), 10)
    assert torch.get_num_threads() == before


def test_devices_and_precisions(monkeypatch):
    assert resolve_device("cpu").type == "cpu"
    assert resolve_precision("bf16", torch.device("cpu")) == torch.bfloat16
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        for feature in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, feature, lambda native=native: native, raising=False)
        assert resolve_precision("auto", torch.device("cpu")) == dtype
    with pytest.raises(TokredError, match="cannot be used here"):
        resolve_device("tpu:7")
    with pytest.raises(TokredError, match="Unknown precision 'fp8'"):
        resolve_precision("fp8", torch.device("cpu"))
