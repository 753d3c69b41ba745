"""Published checkpoints: files of the benchmark's layout against forward passes that are written out here."""

import argparse
import os

import pytest
import torch
from helpers import tokenreduction
from helpers.tokenreduction import (
    COUNTS,
    LAYERS,
    LEARNED,
    PATCHES,
    RATE,
    dpcknn,
    draw,
    dynamicvit,
    forward,
    patchmerger,
    settings,
    sinkhorn,
    sit,
    state,
    written,
)

import tokred
from tokred.core.costs import CostTable
from tokred.errors import TokredError
from tokred.evaluation import calibration, foreign_plans
from tokred.evaluation.builder import build
from tokred.evaluation.config import Config
from tokred.models import foreign, tensor_files, zoo
from tokred.tables.results_table import row_notes, sweep_table
from tokred.tables.row import BASELINE, Row
from tokred.testing import tiny_vit

pytestmark = pytest.mark.usefixtures("shared_costs", "plain_outputs")


def entry(path, method, images, budget=0.15, **options):
    """What a comparison makes of a checkpoint, and its logits."""
    settings = {"adapters": (str(path),), "options": {method: options} if options else {}, "controls": False}
    backbone = tiny_vit()
    loaded = zoo.Loaded(backbone, "tiny", "random weights", tensor_files.hash_weights(backbone))
    made = build(Config("tiny", (budget,), (method,), **settings), loaded, CostTable(backbone))[0]
    if made.refused:
        raise made.refused
    with torch.no_grad():
        return made, made.model(images)


REFERENCE = {
    "patchmerger": patchmerger,
    "sinkhorn": sinkhorn,
    "sit": sit,
    "dynamicvit": dynamicvit,
    "dpcknn": dpcknn,
}


@pytest.mark.parametrize("method", ["patchmerger", "sinkhorn", "sit"])
@pytest.mark.parametrize("ema_best", [False, True])
def test_fixed_counts(tmp_path, images, method, ema_best):
    """The file's own backbone, layers and counts, the better of its two states, whatever the budget."""
    made, logits = entry(written(tmp_path / "best_checkpoint.pth", method, ema_best), method, images)
    assert (made.match.plan.stages, made.match.plan.tokens) == ((2, 3), tuple(COUNTS))
    wanted = forward(state(method), images, before=REFERENCE[method])
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert not torch.allclose(
        forward(state(method, shift=0.5), images, before=REFERENCE[method]), wanted, atol=1e-2
    )
    assert made.match.reduction == pytest.approx(
        1 - CostTable(tiny_vit()).plan(made.match.plan) / CostTable(tiny_vit()).dense
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dynamicvit", "dpcknn"])
def test_free_counts(tmp_path, images, monkeypatch, method):
    """Parameters that serve any counts: the budget decides."""
    made, logits = entry(written(tmp_path / "x.pth", method), method, images, budget=0.25)
    assert made.match.plan.stages == (2, 3)
    assert 0 <= made.match.reduction - 0.25 < 0.02
    monkeypatch.setattr(tokenreduction, "COUNTS", list(made.match.plan.tokens))
    assert torch.allclose(
        logits, forward(state_of(tmp_path / "x.pth"), images, before=REFERENCE[method]), atol=1e-4
    )


def state_of(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("method", ["topk", "evit"])
def test_methods_without_parameters(tmp_path, images, method):
    made, logits = entry(written(tmp_path / "x.pth", method), method, images, budget=0.2)
    tokens = made.match.plan.tokens

    def between(s, x, cls):
        kept = tokens[s] - (method == "evit")
        order = cls.sort(dim=1, descending=True).indices
        rows = torch.stack([image[chosen[:kept]] for image, chosen in zip(x, order, strict=True)])
        left = [
            (w[gone[kept:], None] * image[gone[kept:]]).sum(0)
            for image, w, gone in zip(x, cls, order, strict=True)
        ]
        return torch.cat([rows, torch.stack(left)[:, None]], dim=1) if method == "evit" else rows

    assert torch.allclose(logits, forward(state(method), images, between=between), atol=1e-4)


def picked(s, x, score):
    """Of one image the tokens whose sums are nearest to the benchmark's points."""
    sums, k = (score / (score.sum() + 1e-6)).cumsum(1), COUNTS[s] + 1
    points = torch.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 2 / (2 * k))
    return x[:, (sums - points[:, None]).abs().argmin(1).unique()]


@pytest.mark.slow
def test_counts_that_depend_on_the_image(tmp_path, images, monkeypatch):
    """At the rate of its training a file of ATS gives the benchmark's logits; a budget sets another rate."""
    path = written(tmp_path / "x.pth", "ats")
    reduced = tokred.reduce(tiny_vit(), "ats", adapter=path, threshold=RATE)
    assert reduced.plan.stages == (2, 3)
    assert reduced.plan.options == {"variant": "benchmark"}
    with torch.no_grad():
        wanted = torch.cat([forward(state("ats"), image[None], scored=picked) for image in images])
        assert torch.allclose(reduced(images), wanted, atol=1e-4)
    monkeypatch.setattr(calibration, "IMAGES", 16)
    made, logits = entry(path, "ats", images, budget=0.2)
    assert made.match.reduction == pytest.approx(0.2, abs=0.01)  # of 16 images with few tokens
    assert made.match.plan.knob != RATE
    assert not torch.allclose(logits, wanted, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes", "options"),
    [
        (
            "kmedoids",
            {"cluster_iters": 5},
            {"update": "published", "iterations": 5, "weight": "received", "output": "medoid"},
        ),
        ("tome", {}, {"metric": "keys", "proportional": True, "split": "alternate", "weight": "size"}),
        (
            "sinkhorn",
            {"sinkhorn_eps": 0.5, "cluster_iters": 4},
            {"epsilon": 0.5, "iterations": 4, "output": "published", "solver": "torch"},
        ),
        (
            "dpcknn",
            {"k_neighbors": 3},
            {"neighbors": 3, "weights": "learned", "scale": "published", "ties": "index"},
        ),
        ("patchmerger", {}, {"scale": "none", "value": "normalized"}),
    ],
)
def test_options_are_those_of_the_training(tmp_path, images, method, changes, options):
    made, logits = entry(
        written(tmp_path / "x.pth", method, args=settings(method, **changes)), method, images
    )
    assert made.match.plan.options == options
    assert made.match.plan.stages == (2, 3)  # ToMe too, whose own layers are all
    assert logits.isfinite().all()
    name = next(iter(options))
    other = {"update": "textbook", "metric": "x", "epsilon": 2.0, "neighbors": 4, "scale": "sqrt"}[name]
    with pytest.raises(TokredError, match=f"cannot be used here: it was fitted with {name}="):
        entry(tmp_path / "x.pth", method, images, **{name: other})


def test_options_of_the_file_change_what_is_computed(tmp_path, images):
    _, logits = entry(
        written(tmp_path / "x.pth", "sinkhorn", args=settings("sinkhorn", sinkhorn_eps=0.2)),
        "sinkhorn",
        images,
    )
    wanted = forward(state("sinkhorn"), images, before=lambda *given: sinkhorn(*given, eps=0.2))
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert not torch.allclose(logits, forward(state("sinkhorn"), images, before=sinkhorn), atol=1e-4)


def test_clusters_of_equal_weight(tmp_path, images):
    content = {"model": state("none"), "args": settings("dpcknn", equal_weight=True)}
    torch.save(content, tmp_path / "x.pth")
    assert entry(tmp_path / "x.pth", "dpcknn", images)[0].match.plan.options["weights"] == "equal"
    torch.save(content | {"args": settings("kmedoids", equal_weight=True)}, tmp_path / "x.pth")
    with pytest.raises(TokredError, match="K-Medoids without weights"):
        foreign.read(tmp_path / "x.pth")


@pytest.mark.parametrize("method", LEARNED)
def test_parameters_tell_the_method_without_settings(tmp_path, method):
    torch.save({"model": state(method), "ema_best": False}, tmp_path / "x.pth")
    with pytest.raises(TokredError, match=r"has 2 reducers, and its settings name 3 layers"):
        foreign.read(tmp_path / "x.pth")  # which layers it does not say, and the usual ones are three
    torch.save({"model": state(method), "args": {"reduction_loc": LAYERS}}, tmp_path / "x.pth")
    card = foreign.read(tmp_path / "x.pth").card
    assert (card["method"], card["stages"], card["images_seen"]) == (method, [2, 3], None)


@pytest.mark.slow
def test_a_method_that_cannot_be_told_is_asked_for(tmp_path, images):
    path = tmp_path / "best_checkpoint.pth"
    torch.save({"model": state("none"), "args": {"reduction_loc": LAYERS}}, path)
    with pytest.raises(
        TokredError, match=f"cannot be told from what is in it; say it, such as --adapters evit={path}"
    ):
        foreign.find([path])
    (found,) = foreign.find([f"evit={path}"])
    assert found.card["method"] == "evit"
    assert entry(f"tome={path}", "tome", images)[1].isfinite().all()
    named = tmp_path / "evit_tiny_0.7.pth"
    path.rename(named)
    assert foreign.find([named])[0].card["method"] == "evit"


def test_what_contradicts_itself_is_refused(tmp_path):
    written(tmp_path / "x.pth", "evit")
    with pytest.raises(TokredError, match="holds evit, not topk"):
        foreign.find([f"topk={tmp_path / 'x.pth'}"])
    written(tmp_path / "x.pth", "sit", args=settings("patchmerger"))
    with pytest.raises(TokredError, match="holds sit, not patchmerger"):
        foreign.find([tmp_path / "x.pth"])
    torch.save({"model": state("none"), "args": settings("sit")}, tmp_path / "x.pth")
    with pytest.raises(TokredError, match="lacks the parameters of sit"):
        foreign.find([tmp_path / "x.pth"])


def test_methods_that_tokred_does_not_have_are_refused_by_name(tmp_path):
    with pytest.raises(TokredError, match="was trained with heuristic, which tokred does not have"):
        foreign.find([written(tmp_path / "x.pth", "heuristic")])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"weights": torch.zeros(3)}, "no checkpoint of the TokenReduction benchmark"),
        ({"model": {"fc.weight": torch.zeros(3, 3)}, "args": {"model": "evit_tiny"}}, "holds no DeiT"),
        (
            {"model": {**state("sit"), "cluster_layers.0.other": torch.zeros(3)}, "args": {}},
            "of a method that tokred does not know",
        ),
        ({"model": state("sit"), "args": {"reduction_loc": ["a", "b"]}}, "its settings are damaged"),
        (
            {"model": state("sinkhorn"), "args": {"reduction_loc": LAYERS, "sinkhorn_eps": None}},
            "its settings are damaged",
        ),
    ],
)
def test_other_files_are_one_sentence(tmp_path, content, sentence):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(TokredError, match=sentence):
        foreign.find([tmp_path / "x.pth"])


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_file_is_refused_unread(tmp_path):
    trap = Evil(tmp_path / "ran")
    for changes in (
        {"optimizer": trap},
        {"args": trap},
        {"args": settings("sit", output_dir=trap)},
        {"model_ema": trap},
    ):
        with pytest.raises(TokredError, match="is not a plain file of tensors"):
            foreign.find([written(tmp_path / "x.pth", "sit", **changes)])
    assert not (tmp_path / "ran").exists()


def test_other_models_are_refused(tmp_path, images):
    path = written(tmp_path / "x.pth", "sit")
    backbone = tiny_vit(num_classes=7)
    with pytest.raises(
        TokredError, match=r"36 patches and 10 classes .*but what is compared is .*36 patches and 7 classes"
    ):
        tokred.reduce(backbone, "sit", 0.2, adapter=path)
    with pytest.raises(TokredError, match="was trained at layers 2 3, not at 1 2; leave out stages"):
        tokred.reduce(tiny_vit(), "sit", 0.2, adapter=path, stages=(1, 2))


def test_from_python(tmp_path, images):
    reduced = tokred.reduce(tiny_vit(), "patchmerger", adapter=written(tmp_path / "x.pth", "patchmerger"))
    with torch.no_grad():
        assert torch.allclose(
            reduced(images), forward(state("patchmerger"), images, before=patchmerger), atol=1e-4
        )


@pytest.mark.slow
def test_of_several_rates_the_nearest_to_the_budget_runs(tmp_path, monkeypatch):
    costs, saved = CostTable(tiny_vit()), {}
    for rate in (0.9, 0.7, 0.5):
        monkeypatch.setattr(tokenreduction, "COUNTS", [int(PATCHES * rate), int(PATCHES * rate**2)])
        for method in ("sit", "evit"):
            path = tmp_path / f"{method}-{rate}"
            path.mkdir()
            written(path / "best_checkpoint.pth", method, args=settings(method, keep_rate=[rate]))
        (checkpoint,) = foreign.find([tmp_path / f"sit-{rate}"])
        saved[rate] = foreign_plans.plan_of(checkpoint, costs, 0.1, {}).reduction
    given = foreign.find([tmp_path])  # a folder of folders, as it is downloaded
    assert len(given) == 6
    for rate, reduction in saved.items():
        near = foreign_plans.nearest(given, costs, reduction, {})
        assert not near.refused
        assert [adapter.path.parent.name for adapter in near.adapters] == [f"evit-{rate}", f"sit-{rate}"]
        assert near.matches["sit"].reduction == reduction


def test_a_sweep_says_where_a_checkpoint_really_runs():
    fixed = [
        Row("sit", budget=budget, reduction=0.36, top1=70.0, training="published") for budget in (0.2, 0.36)
    ]
    table = sweep_table([Row(BASELINE, top1=72.0), *fixed], "t")
    assert list(table.rows[1][1:]) == ["70.00 (at 36.0 %)", "70.00"]


@pytest.mark.slow
def test_a_comparison_has_trained_rows(tmp_path):
    """A whole run on a real model: the rows say what they are."""
    model = zoo.load_shipped("deit_t").model.state_dict()
    queries = {f"cluster_layers.{s}.queries": draw(int(196 * 0.9 ** (s + 1)), 192, seed=s) for s in range(3)}
    norms = {
        f"cluster_layers.{s}.norm.{part}": torch.ones(192) for s in range(3) for part in ("weight", "bias")
    }
    given = settings("patchmerger", reduction_loc=[3, 6, 9], keep_rate=[0.9])
    torch.save(
        {"model": {**model, **queries, **norms}, "args": given, "epoch": 28, "ema_best": False},
        tmp_path / "merger.pth",
    )
    given = settings("evit", reduction_loc=[3, 6, 9])
    torch.save({"model": model, "args": given, "epoch": 29}, tmp_path / "evit.pth")
    done = tokred.compare(
        "deit_t",
        0.3,
        tmp_path / "run",
        0,
        methods=("patchmerger", "evit", "topk"),
        limit=8,
        adapters=[tmp_path],
        controls=False,
    )
    rows = {row.method: row for row in done.rows}
    assert [row.status for row in done.rows] == ["ok"] * 4
    merger, evit = rows["patchmerger"], rows["evit"]
    assert [row.training for row in (rows[BASELINE], rows["topk"], merger, evit)] == [
        "none",
        "none",
        "published",
        "published",
    ]
    assert (merger.images_seen, evit.images_seen) == (29 * 1_281_167, 30 * 1_281_167)
    assert (merger.tokens, merger.stages, merger.knob, merger.protocol) == (
        "176 158 142",
        "4 7 10",
        "0.9",
        "custom",
    )
    assert merger.reduction < 0.2
    assert f"saves {100 * (0.3 - merger.reduction):.2f} points less than asked" in row_notes(merger)
    assert "published checkpoint, which its authors chose by validation accuracy" in row_notes(merger)
    assert 0 <= evit.reduction - 0.3 < 0.001
    assert evit.options == "normalize=False trained_rate=0.7"
    assert len({merger.adapter, evit.adapter}) == 2
    assert merger.weights_hash == rows[BASELINE].weights_hash  # of what it is compared with
