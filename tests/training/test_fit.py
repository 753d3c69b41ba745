"""Fits learn, survive a kill, leave the backbone alone, and validate on validation images only."""

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers.processes import CONTEXT, free_port
from torch.nn import functional as F

from tokred.core import registry
from tokred.core.options import default_options
from tokred.core.plan import Plan
from tokred.core.reduction import Merge
from tokred.errors import TokredError
from tokred.models import adapters, foreign, tensor_files, zoo
from tokred.testing import tiny_vit
from tokred.training.fit.config import FitConfig
from tokred.training.fit.job import Fit
from tokred.training.fit.recipe import FitRecipe, load_recipe
from tokred.training.fit.student import Student, _cross_entropy

SHORT = FitRecipe(images=64, batch_size=8, evaluations=2)


STAGES = (2, 3)


def loaded(classes=10):
    model = copy.deepcopy(tiny_vit(num_classes=classes))
    return zoo.Loaded(model, "tiny", "random weights", tensor_files.hash_weights(model))


def fit(out, data, method="patchmerger", recipe=SHORT, model=None, **changes):
    settings = {
        "budget": None,
        "stages": STAGES,
        "data": data,
        "labels": False,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    return Fit(FitConfig(method, recipe, "tiny", **{**settings, **changes}), out, model or loaded())


def finished(out, data, stop=None, **changes):
    run = fit(out, data, **changes)
    run.resume()

    def progress(state):
        if state.step == stop:
            raise KeyboardInterrupt

    try:
        run.run(progress, interval=1e9)
    except KeyboardInterrupt:
        pass
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps"), [("patchmerger", 80), ("sit", 80), ("sinkhorn", 80), ("dynamicvit", 200)]
)
def test_a_few_steps_beat_the_unfitted_method_by_far(tmp_path, pictures, method, steps):
    recipe = FitRecipe(images=8 * steps, batch_size=8, lr=1e-2, calibrate=False, evaluations=2)
    options = (
        {"epsilon": 0.1, "output": "mean"} if method == "sinkhorn" else {}
    )  # in the published form all outputs are nearly one
    run = fit(tmp_path, pictures, method, recipe, options=options)
    before, _ = run.validate()
    run.resume()
    run.run()
    after, _ = run.validate()
    assert run.step == steps
    assert after < 0.6 * before


def test_a_frozen_backbone_gets_a_form_that_can_work_and_a_full_fit_the_published_one(tmp_path, pictures):
    published = default_options(registry.get("sinkhorn"))
    frozen = fit(tmp_path, pictures, "sinkhorn").student.plan.options
    assert frozen == {**published, "epsilon": 0.02, "output": "mean"}
    own = fit(tmp_path, pictures, "sinkhorn", options={"epsilon": 0.1}).student.plan.options
    assert (own["epsilon"], own["output"]) == (0.1, "mean")
    recipe = FitRecipe(images=8, full=True)
    assert fit(tmp_path, pictures, "sinkhorn", recipe).student.plan.options == published


@pytest.mark.slow
def test_a_killed_fit_goes_on_to_the_same_adapter(tmp_path, pictures):
    whole = finished(tmp_path / "whole", pictures, method="dynamicvit")
    assert finished(tmp_path / "cut", pictures, stop=5, method="dynamicvit").step == 5
    resumed = finished(tmp_path / "cut", pictures, method="dynamicvit")
    assert resumed.step == whole.step == 8
    assert resumed.history == whole.history
    assert resumed.finish("again").read_bytes() == whole.finish("once").read_bytes()


@pytest.mark.slow
def test_bfloat16_learns_too(tmp_path, pictures):
    recipe = FitRecipe(images=320, batch_size=8, lr=1e-2, evaluations=2)
    run = fit(tmp_path, pictures, recipe=recipe, precision="bf16")
    before, _ = run.validate()
    run.resume()
    run.run()
    assert run.validate()[0] < 0.8 * before
    assert all(p.dtype == torch.float32 for p in run.learner.parameters.values())


@pytest.mark.slow
def test_a_validation_that_is_cut_off_is_made_up_for(tmp_path, pictures):
    whole = finished(tmp_path / "whole", pictures)
    cut = fit(tmp_path / "cut", pictures)
    cut.resume()
    validate, calls = cut.validate, []

    def interrupted():
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate()

    cut.validate = interrupted
    with pytest.raises(KeyboardInterrupt):
        cut.run(interval=1e9)
    resumed = finished(tmp_path / "cut", pictures)
    assert resumed.history == whole.history
    assert resumed.finish("x").read_bytes() == whole.finish("x").read_bytes()


def test_a_step_that_is_cut_off_is_not_saved(tmp_path, pictures):
    run = fit(tmp_path, pictures)
    run.resume()
    step, seen = run.learner.optimizer.step, []

    def interrupted():
        step()
        seen.append(0)
        if len(seen) == 4:
            raise KeyboardInterrupt

    run.learner.optimizer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.run(interval=0)
    resumed = fit(tmp_path, pictures)
    resumed.resume()
    assert resumed.step == 3


def test_a_stage_that_keeps_all_is_passed_over(tmp_path, pictures):
    for any_budget in (True, False):
        student = Student(
            copy.deepcopy(tiny_vit()), Plan("sit", (1, 2, 3), (30, 30, 20)[:3], {}), SHORT, any_budget
        )
        student.model.eval()
        student.model.retarget(student.plan.tokens)
        images = torch.randn(2, 3, 48, 48)
        with torch.no_grad():
            state = student.model.run(images)
        assert [r.matrix().shape[1] for r in state.reductions] == [30, 20]
        student.train(0)
        student.loss(images, student.teach(images, torch.arange(2)), None)["loss"].backward()


def test_mixed_targets_are_not_smoothed_again():
    logits, soft = torch.randn(4, 10), torch.softmax(torch.randn(4, 10), 1)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert _cross_entropy(logits, soft, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    hard = torch.tensor([1, 2, 3, 4])
    smooth = 0.9 * F.one_hot(hard, 10) + 0.01
    assert _cross_entropy(logits, hard, 0.1).item() == pytest.approx(
        -(smooth * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5
    )


def test_a_finished_fit_trains_no_further(tmp_path, pictures):
    first = finished(tmp_path, pictures)
    again = finished(tmp_path, pictures)
    assert again.step == first.step
    assert not again.stop_reason
    assert again.finish("x").read_bytes() == first.finish("x").read_bytes()


def test_a_folder_of_another_fit_is_refused(tmp_path, pictures):
    finished(tmp_path, pictures, stop=1)
    with pytest.raises(TokredError, match="differs in method, options, tokens; choose another folder"):
        fit(tmp_path, pictures, "sinkhorn", options={"epsilon": 0.1}).resume()
    (tmp_path / "checkpoint.pt").write_bytes(b"cut off")
    with pytest.raises(TokredError, match="delete it to start over"):
        fit(tmp_path, pictures).resume()


def test_the_backbone_stays_as_it_is_and_only_reducers_learn(tmp_path, pictures):
    model = loaded()
    run = finished(tmp_path, pictures, model=model)
    assert tensor_files.hash_weights(model.model) == model.weights_hash
    assert all(name.startswith("stages.") for name in run.learner.parameters)
    assert run.student.model.backbone is model.model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lotm", "tome", "kmedoids", "dpcknn", "topk", "evit", "dynamicvit"])
def test_a_full_fit_trains_a_copy_of_the_backbone(tmp_path, pictures, method):
    model = loaded()
    run = finished(
        tmp_path,
        pictures,
        method=method,
        recipe=SHORT.model_copy(update={"full": True}),
        model=model,
        budget=0.2,
    )
    assert tensor_files.hash_weights(model.model) == model.weights_hash
    assert tensor_files.hash_weights(run.student.model.backbone) != model.weights_hash
    path = run.finish("tokred fit")
    applied = foreign.find([path])[0].apply(model.model, run.student.plan, model.weights_hash)
    assert applied.backbone is not model.model
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with (
        torch.no_grad(),
        run.student.holding(adapters.unpack(adapters.pack(run.best.tensors))),
    ):
        run.student.model.eval()
        assert torch.equal(applied(images), run.student.model(images))


def test_it_stops_when_validation_gets_no_better_and_keeps_the_best(tmp_path, pictures):
    run = fit(tmp_path, pictures, recipe=SHORT.model_copy(update={"evaluations": 8, "patience": 3}))
    losses = iter([3.0, 1.0, 2.0, 1.5, 1.5, 0.1, 0.1, 0.1])
    run.validate = lambda: (next(losses), 50.0)
    run.resume()
    run.run()
    assert run.step == 5
    assert (run.best.step, run.best.loss) == (2, 1.0)
    assert run.stop_reason.startswith(
        "Stopped after 5 of 8 steps: the loss was not lower than at step 2 in 3 validations since"
    )
    assert finished(tmp_path, pictures, recipe=run.recipe).step == 5  # and is not taken up again


def test_a_running_mean_of_the_weights_is_validated_beside_them(tmp_path, pictures):
    run = finished(tmp_path, pictures, recipe=SHORT.model_copy(update={"ema": 0.5}))
    assert {"loss", "average_loss"} <= set(run.history[0])
    assert run.best.loss == pytest.approx(
        min(min(e["loss"], e["average_loss"]) for e in run.history), abs=1e-3
    )


def test_a_batch_in_chunks_gives_the_same_gradient(tmp_path, pictures):
    gradients = []
    for chunk in (8, 3):
        run = fit(
            tmp_path / str(chunk),
            pictures,
            recipe=SHORT.model_copy(update={"clip": None}),
            chunk=chunk,
            labels=False,
        )
        run.resume()
        run.learner.learn(next(run.batches()), 0, run.steps)
        gradients.append(torch.cat([p.grad.flatten() for p in run.learner.parameters.values()]))
    assert torch.allclose(*gradients, atol=1e-5)


def _in_world(rank, world, port, folder, data, queue):
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    run = finished(folder, data)
    if rank == 0:
        parameters = {name: p.detach().numpy().copy() for name, p in run.learner.parameters.items()}
        queue.put(parameters | {"loss": np.array(run.history[-1]["loss"])})
    run.processes.wait()
    run.processes.close()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, pictures):
    queue, port = CONTEXT.Queue(), free_port()
    workers = [
        CONTEXT.Process(target=_in_world, args=(rank, 2, port, tmp_path / "two", pictures, queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    both = queue.get(timeout=480)
    for worker in workers:
        worker.join(60)
    alone = finished(tmp_path / "one", pictures)
    assert both.pop("loss") == pytest.approx(alone.history[-1]["loss"], abs=1e-3)
    for name, value in both.items():
        assert np.allclose(value, alone.learner.parameters[name].detach().numpy(), 1e-4, 1e-3), name


@pytest.mark.slow
def test_the_published_recipe_runs_with_everything_it_has(tmp_path, pictures):
    published = load_recipe("published")
    assert (published.steps(1_281_167), published.lr_at(10**9, 10**9)) == (75068, published.min_lr)
    recipe = published.model_copy(update={"epochs": 0.4, "batch_size": 8, "evaluations": 1})
    run = finished(tmp_path, pictures, recipe=recipe, model=loaded(classes=2), labels=True, budget=0.2)
    assert run.step == 2
    assert run.learner.mixup is not None
    assert {type(block.drop_path1).__name__ for block in run.student.model.backbone.blocks} == {"DropPath"}
    assert np.isfinite(run.history[-1]["average_loss"])


def test_learning_rates_warm_up_and_fall():
    recipe = FitRecipe(images=1600, batch_size=16, lr=1.0, min_lr=0.1, warmup=0.1)
    rates = [recipe.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)


def test_token_distance_is_its_formula():
    model, plan = tiny_vit(), Plan("lotm", (2,), (30,))
    student = Student(copy.deepcopy(model), plan, SHORT.model_copy(update={"full": True}), any_budget=False)
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lesson = student.teach(images, torch.arange(3))
        state = student.model.run(images)
        parts = student.loss(images, lesson, torch.tensor([1, 2, 3]))
        tokens, logits = model.norm(state.x), student.model.logits(state)
    (merge,) = state.reductions
    assert isinstance(merge, Merge)
    expected = []
    for b in range(3):
        target = lesson.tokens[b]
        patches = [(tokens[b, 1 + merge.label[b, j]] - target[1 + j]).square().mean() for j in range(36)]
        prefix = (tokens[b, 0] - target[0]).square().mean()
        expected.append((sum(patches) / 36 + prefix) / target.var())
    assert parts["tokens"].item() == pytest.approx(float(sum(expected)) / 3, rel=1e-4)
    p = lesson.logits.softmax(1)
    divergence = (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
    assert parts["logits"].item() == pytest.approx(divergence.item(), rel=1e-3)
    total = F.cross_entropy(logits, torch.tensor([1, 2, 3])) + parts["logits"] + parts["tokens"]
    assert parts["loss"].item() == pytest.approx(total.item(), rel=1e-4)


def test_counts_are_drawn_anew_at_every_step_within_reach(tmp_path, pictures):
    for method in ("patchmerger", "lotm"):
        student = Student(
            copy.deepcopy(tiny_vit()),
            Plan(method, STAGES, (24, 16)),
            SHORT.model_copy(update={"full": True}),
            True,
        )
        drawn = [student._draw_counts(step) for step in range(200)]
        assert drawn == [student._draw_counts(step) for step in range(200)]
        assert all(36 > a > b >= 1 for a, b in drawn)
        assert len(set(drawn)) > 10
        assert max(a for a, _ in drawn) == 35


@pytest.mark.slow
def test_what_cannot_be_fitted_is_refused_in_a_sentence(tmp_path, pictures):
    with pytest.raises(
        TokredError,
        match="lotm has no parameters of its own to fit with these options; fit the whole model with --full",
    ):
        fit(tmp_path, pictures, "lotm")
    with pytest.raises(TokredError, match="float16"):
        fit(tmp_path, pictures, precision="fp16")
    with pytest.raises(TokredError, match="trains only the reducers; leave out --full"):
        load_recipe("reducer", full=True)
    with pytest.raises(TokredError, match="either images or epochs"):
        load_recipe(str(_write(tmp_path / "none.yaml", "lr: 0.1")))
    with pytest.raises(TokredError, match="images is wrong: it takes numbers, and true is none"):
        load_recipe(str(_write(tmp_path / "true.yaml", "images: true")))
    with pytest.raises(TokredError, match="batch_size is wrong: input should be less than or equal to 65536"):
        load_recipe(str(_write(tmp_path / "huge.yaml", "images: 9\nbatch_size: 99999999999")))
    with pytest.raises(TokredError, match="Without labels this recipe has no loss"):
        fit(tmp_path, pictures, "sit", load_recipe("published"))
    with pytest.raises(TokredError, match="endless, so this recipe needs their number"):
        Fit(FitConfig("sit", load_recipe("published"), "deit_t", budget=0.3), tmp_path)


def _write(path, text):
    path.write_text(text)
    return path


@pytest.mark.slow
def test_learned_weights_of_dpcknn_can_be_fitted(tmp_path, pictures):
    run = finished(tmp_path, pictures, method="dpcknn", options={"weights": "learned"})
    assert set(run.learner.parameters) == {
        f"stages.pre{layer}.reducer.score.{kind}" for layer in STAGES for kind in ("weight", "bias")
    }
    assert any(p.grad.any() for p in run.learner.parameters.values())


def test_a_loss_that_is_no_number_ends_with_a_sentence_and_a_checkpoint(tmp_path, pictures):
    run = fit(tmp_path, pictures)
    run.resume()
    with torch.no_grad():
        next(iter(run.learner.parameters.values())).fill_(float("nan"))
    with pytest.raises(TokredError, match="The loss is not finite at step 0"):
        run.run()
    assert (tmp_path / "checkpoint.pt").exists()
