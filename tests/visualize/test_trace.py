"""Where tokens go, against walks over Python lists; on which images models disagree; what a report keeps."""

import copy
import io

import numpy as np
import pytest
import torch
from helpers.adaptive import Standouts
from hypothesis import given
from hypothesis import strategies as st

from tokred.core import registry
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep, Merge, Mix
from tokred.core.vit import ReducedViT
from tokred.data import loading, preprocessing, sources
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation, Failure
from tokred.testing import reduced, tiny_vit
from tokred.visualize import trace


def batch(model, m=3, seed=0):
    size = model.patch_embed.img_size
    images = torch.randn(m, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(m), torch.arange(m) + 7)


def walk(steps, n):
    """Patch by patch: where it is after each step, each step a list of the slot of every token."""
    found = []
    for patch in range(n):
        token, path = patch, []
        for step in steps:
            token = -1 if token == -1 else step[token]
            path.append(token)
        found.append(path)
    return [list(stage) for stage in zip(*found, strict=True)]


@given(st.integers(2, 12), st.integers(0, 1000))
def test_labels_of_every_stage_are_a_walk_over_all_steps(n, seed):
    rng = torch.Generator().manual_seed(seed)
    reductions, steps, count = [], [], n
    for kind in torch.randint(0, 4, (4,), generator=rng).tolist():
        keep = max(1, count - 1)
        if kind == 0:  # drops what it does not keep
            index = torch.randperm(count, generator=rng)[:keep][None]
            reductions.append(Keep(index, count))
            steps.append([index[0].tolist().index(i) if i in index[0] else -1 for i in range(count)])
        elif kind == 1:
            label = torch.cat([torch.arange(keep), torch.randint(0, keep, (count - keep,), generator=rng)])[
                None
            ]
            reductions.append(Merge(label, keep))
            steps.append(label[0].tolist())
        elif kind == 2:
            label = torch.cat([torch.arange(keep), torch.full((count - keep,), -1)])[None]
            reductions.append(Merge(label, keep, drops=True))
            steps.append(label[0].tolist())
        else:
            weight = torch.rand(1, keep, count, generator=rng)
            reductions.append(Mix(weight))
            steps.append([max(range(keep), key=lambda slot: weight[0, slot, i].item()) for i in range(count)])
        count = keep
    assert trace.stage_labels(reductions, 1, n)[0].tolist() == walk(steps, n)


def test_no_stage_has_no_labels():
    assert trace.stage_labels([], 2, 9).shape == (2, 0, 9)


MODELS = {
    "plain": {},
    "distilled": {"distilled": True},
    "no CLS": {"class_token": False, "global_pool": "avg"},
    "odd grid": {"img_size": (40, 64)},
    "no classifier": {"num_classes": 0},
}


def a_model(kind):
    options = dict(MODELS[kind])
    if options.pop("distilled", False):
        import timm

        return timm.create_model(
            "deit_tiny_distilled_patch16_224",
            img_size=48,
            patch_size=8,
            embed_dim=48,
            depth=4,
            num_heads=3,
            num_classes=10,
        ).eval()
    return tiny_vit(**options)


def test_counts_of_a_method_whose_counts_depend_on_the_image_are_means():
    backbone = tiny_vit()
    model = ReducedViT(backbone, Plan(Standouts, (2, 3), (36, 36), knob=0.5))
    data = batch(backbone)
    traced = trace.trace(backbone, {"standouts": model}, [data])
    with torch.inference_mode():
        counts = np.concatenate([model.run(image[None]).counts.numpy() for image in data.images])
    assert not traced.failed
    assert traced.maps["standouts"].tokens == (36, *counts.mean(0).round().astype(int))
    assert (traced.maps["standouts"].labels.max(2) + 1).tolist() == counts.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_labels_and_predictions_are_those_of_the_model_run_alone(kind):
    backbone = a_model(kind)
    names = [
        name for name in registry.names() if ReducedViT(backbone).has_cls or not registry.get(name).needs_cls
    ]
    models = {
        name: reduced(registry.get(name), backbone)
        for name in names
        if name != "dynamicvit" or kind != "no CLS"
    }
    data = batch(backbone)
    traced = trace.trace(backbone, models, [data])
    assert not traced.failed
    assert traced.index.tolist() == [7, 8, 9]
    assert traced.grid == tuple(backbone.patch_embed.grid_size)
    for name, model in models.items():
        with torch.inference_mode():
            state = model.advance(model.embed(data.images, data.indices))
            expected = model.logits(state).softmax(1) if backbone.num_classes else torch.zeros(3, 0)
        found = traced.maps[name]
        np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-6)
        assert found.layers == model.plan.stages
        kept = state.counts.double().mean(0).round().int().tolist() if model.adaptive else model.plan.tokens
        assert found.tokens == (np.prod(traced.grid), *kept)
        assert found.soft == any(isinstance(reduction, Mix) for reduction in state.reductions)
        for image in range(3):
            steps = [reduction.labels()[image].tolist() for reduction in state.reductions]
            assert found.labels[image].tolist() == walk(steps, found.tokens[0])
        assert model.adaptive or found.labels.max() < found.tokens[1]
    np.testing.assert_allclose(traced.dense.probabilities.sum(1), 1 if backbone.num_classes else 0, atol=1e-5)


def test_after_a_layer_is_the_last_stage_that_has_run():
    labels = np.array([[[0, 0, 1, 2], [1, -1, 0, 0]]])
    found = trace.Map((4, 7), (4, 3, 2), labels, np.zeros((1, 0)))
    assert [found.after(layer)[0] for layer in (1, 3, 4, 6, 7, 12)] == [4, 4, 3, 3, 2, 2]
    assert found.after(3)[1].tolist() == [[0, 1, 2, 3]]
    assert found.after(5)[1].tolist() == [[0, 0, 1, 2]]
    assert found.after(12)[1].tolist() == [[1, -1, 0, 0]]


def test_images_are_the_pixels_that_the_model_saw():
    """What was normalised comes back; what lies beyond the last whole patch does not."""
    backbone = tiny_vit(img_size=(52, 48))  # 6 rows of 8 pixels, and 4 pixels that no patch has
    config = preprocessing.data_config(backbone)
    colours = np.random.default_rng(0).integers(0, 256, (2, 52, 48, 3)).astype(np.uint8)
    mean, std = np.array(config["mean"]), np.array(config["std"])
    normal = torch.tensor((colours / 255 - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(trace.pixels(normal, backbone), colours[:, :48])


def test_a_method_that_fails_does_not_take_the_others_along():
    class Boom(Reducer):
        """Fail."""

        def forward(self, view):
            raise RuntimeError("no luck\nat all")

    class Hollow(Reducer):
        """Give tokens that are no numbers."""

        def forward(self, view):
            return Mix(torch.full((len(view.x), self.keep, self.n), torch.nan))

    backbone = tiny_vit()
    good = reduced(registry.get("lotm"), backbone)
    bad = {
        "boom": ReducedViT(backbone, Plan(Boom, (2,), (20,))),
        "hollow": ReducedViT(backbone, Plan(Hollow, (2,), (20,))),
    }
    traced = trace.trace(backbone, {**bad, "lotm": good}, [batch(backbone), batch(backbone, seed=1)])
    assert traced.failed == {"boom": "no luck", "hollow": "its output is not finite"}
    assert list(traced.maps) == ["lotm"]
    assert len(traced.maps["lotm"].labels) == 6


def test_a_broken_dense_model_and_no_images_are_errors():
    broken = copy.deepcopy(tiny_vit())
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    with pytest.raises(TokredError, match="dense model fails: its output is not finite"):
        trace.trace(broken, {}, [batch(broken)])
    with pytest.raises(TokredError, match="no image to show"):
        trace.trace(tiny_vit(), {}, [])


def an_evaluation(dense, methods, labels):
    found = Evaluation.empty(len(labels), methods)
    found.labels[:], found.done[:] = labels, True
    found.dense.prediction[:] = dense
    for name, prediction in methods.items():
        found.methods[name].prediction[:] = prediction
    return found


def test_chosen_images_are_those_with_most_pairs_that_disagree():
    found = an_evaluation(
        [0, 1, 2, 3], {"a": [0, 1, 5, 3], "b": [0, 6, 5, 3], "c": [0, 1, 7, 8]}, [0, 1, 2, 3]
    )
    # Pairs: none, 3, 5 and 3.
    assert trace.choose(found, 9).tolist() == [2, 1, 3, 0]
    assert trace.choose(found, 1).tolist() == [2]
    assert trace.choose(found, 2).dtype == np.int64


def test_labels_that_were_not_chosen_yet_come_first_as_long_as_models_disagree_there():
    found = an_evaluation([0] * 5, {"a": [1, 1, 1, 0, 0], "b": [2, 2, 1, 0, 0]}, [4, 4, 5, 6, 6])
    assert trace.choose(found, 5).tolist() == [0, 2, 1, 3, 4]


def test_unreadable_images_and_failed_methods_do_not_count():
    found = an_evaluation([0, 0, 0], {"a": [9, 0, 1], "b": [9, 5, 0]}, [0, 1, 2])
    found.remark({0: "gone"}, {})
    found.fail("b", Failure(0, "boom"))
    found.done[1] = True
    assert trace.choose(found, 3).tolist() == [2, 1]
    assert trace.choose(Evaluation.empty(4, ["a"]), 3).tolist() == []


@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 500))
def test_choice_against_a_sort_in_python(n, k, seed):
    rng = np.random.default_rng(seed)
    predictions = rng.integers(0, 3, (k + 1, n))
    labels = rng.integers(0, 3, n)
    found = an_evaluation(predictions[0], {str(i): row for i, row in enumerate(predictions[1:])}, labels)
    pairs = [
        sum(predictions[a][i] != predictions[b][i] for a in range(k + 1) for b in range(a)) for i in range(n)
    ]
    left, expected = sorted(range(n), key=lambda i: (-pairs[i], i)), []
    for some in ([i for i in left if pairs[i]], [i for i in left if not pairs[i]]):
        times = {label: sum(labels[i] == label for i in expected) for label in labels}
        rank = {}
        for i in some:
            rank[i] = times[labels[i]]
            times[labels[i]] += 1
        expected += sorted(some, key=lambda i: rank[i])
    assert trace.choose(found, n).tolist() == expected


def test_images_are_loaded_by_index_as_a_comparison_loads_them():
    source, preparation = sources.open_source(), preprocessing.prepare(tiny_vit(), crop_pct=1.0)
    (whole,) = loading.batches(source.limit(6), preparation, [range(6)], 0)
    first, second = trace.load(source, preparation, np.array([5, 0, 3]), batch_size=2)
    assert [first.indices.tolist(), second.indices.tolist()] == [[5, 0], [3]]
    assert torch.equal(torch.cat([first.images, second.images]), whole.images[[5, 0, 3]])
    assert first.labels.tolist() == whole.labels[[5, 0]].tolist()


def test_packed_maps_come_back():
    backbone = tiny_vit(img_size=(40, 64))
    models = {
        "lotm": reduced(registry.get("lotm"), backbone),
        "dense": ReducedViT(backbone),
        "topk": reduced(registry.get("topk"), backbone),
    }
    traced = trace.trace(backbone, models, [batch(backbone)])
    arrays = dict(np.load(io.BytesIO(trace.pack(traced)), allow_pickle=False))
    assert set(arrays) == {"index", "images", "names", "labels", "grid"}
    assert arrays["names"].tolist() == ["lotm", "topk"]  # the dense one has no tokens to draw
    assert arrays["grid"].tolist() == [5, 8]
    assert (arrays["labels"].dtype, arrays["labels"].shape) == (np.int16, (3, 2, 40))
    np.testing.assert_array_equal(arrays["labels"][:, 1], traced.maps["topk"].labels[:, -1])
    np.testing.assert_array_equal(arrays["images"], traced.images)
    assert (arrays["index"].dtype, arrays["index"].tolist()) == (np.int64, [7, 8, 9])
    assert (arrays["labels"][:, 1] == -1).any()
