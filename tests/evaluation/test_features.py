"""Models without a classifier: fidelity of features, nearest neighbours, tables, boards and verification."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers.command import run
from helpers.hub import config, small
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tokred.core.plan import Plan
from tokred.core.registry import get
from tokred.core.vit import ReducedViT
from tokred.evaluation.feature_scores import feature_columns, neighbours, vote
from tokred.evaluation.features import distances, features_of
from tokred.evaluation.predictions import FEATURES, Evaluation, Predictions, RunPredictions
from tokred.models import zoo
from tokred.tables.row import from_csv

GEOMETRIES = {
    "DINOv2": {"init_values": 1e-5, "reg_tokens": 4},
    "CLIP": {"pre_norm": True},
    "MAE": {"global_pool": "avg", "class_token": False},
    "SigLIP": {"global_pool": "map", "class_token": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A model without a classifier, images in folders of two classes, and a finished run of both."""
    root = tmp_path_factory.mktemp("features")
    (root / "encoder").mkdir()
    (root / "encoder" / "config.json").write_text(json.dumps(config(num_classes=0)))
    weights = small(num_classes=0).state_dict()
    safetensors.torch.save_file(weights, root / "encoder" / "model.safetensors", metadata={"format": "pt"})
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "data" / "validation" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    code, text = compare(root, "--out", root / "out")
    assert code == 0, text
    return root, text


def compare(root, *arguments, command="compare"):
    settings = ("--workers", 0, "--methods", "lotm,topk", "--stages", "2 3", *arguments)
    return run(
        command, "--model", f"local-dir:{root / 'encoder'}", "--data", root / "data" / "validation", *settings
    )


def test_a_projection_is_no_classifier(tmp_path):
    """CLIP's towers have an embedding in place of classes, unless they were fine-tuned."""
    model = small(num_classes=7, pre_norm=True)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    for tag, classes in {"openai": 0, "openai_ft_in1k": 7}.items():
        settings = config("vit_base_patch32_clip_224", num_classes=7, tag=tag)
        (tmp_path / "config.json").write_text(json.dumps(settings))
        name = f"local-dir:{tmp_path}"
        loaded = zoo.load_for(name, None, classifier=False)
        assert loaded.model.num_classes == classes
        assert loaded.model(torch.rand(1, 3, 48, 48)).shape == (1, 7)
        assert zoo.load_for(name, None).model.num_classes == 7


def numpy_distances(own, dense, patches, dense_patches):
    """Of one image: features [D], patches [N, D]."""

    def cosine(a, b):
        product = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / product if product else 0.0

    return {
        "cosine": cosine(own, dense),
        "error": np.linalg.norm(own - dense) / np.linalg.norm(dense),
        "patch_cosine": np.mean([cosine(a, b) for a, b in zip(patches, dense_patches, strict=True)]),
        "patch_error": np.linalg.norm(patches - dense_patches) / np.linalg.norm(dense_patches),
    }


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("method", ["lotm", "random"])
def test_distances_are_those_of_timms_features(options, method):
    backbone, images = small(num_classes=0, **options), torch.rand(2, 3, 48, 48)
    dense, own = ReducedViT(backbone), ReducedViT(backbone, Plan(get(method), (2,), (20,)))
    with torch.inference_mode():
        parts = []
        for model in (dense, own):
            state = model.run(images)
            parts.append(features_of(model, state, model.logits(state)))
        found = distances(parts[1], parts[0])
        pooled, dense_pooled = own(images).numpy(), backbone(images).numpy()
        norm = {"norm": True, "indices": [3], "intermediates_only": True, "output_fmt": "NLC"}
        (patches,), (dense_patches,) = (
            model.forward_intermediates(images, **norm) for model in (own, backbone)
        )
    for i in range(2):
        wanted = numpy_distances(pooled[i], dense_pooled[i], patches[i].numpy(), dense_patches[i].numpy())
        assert {name: found[name][i] for name in wanted} == pytest.approx(wanted, rel=1e-4)
        unit = pooled[i] / np.linalg.norm(pooled[i])
        assert found["features"][i] == pytest.approx(unit, abs=1e-3)


def test_neighbours_are_scikit_learns():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)).astype(np.float16)
    labels = (features[:, 0] > 0).astype(int) + 3
    oracle = NearestNeighbors(n_neighbors=8, metric="cosine").fit(features.astype(float))
    found = neighbours(features, np.arange(60), 7)
    assert np.array_equal(found, oracle.kneighbors(features.astype(float))[1][:, 1:])
    for i in range(0, 60, 7):  # leave one out; seven neighbours of two classes do not tie
        rest = np.delete(np.arange(60), i)
        model = KNeighborsClassifier(7, metric="cosine").fit(features[rest].astype(float), labels[rest])
        assert vote(labels[found])[i] == model.predict(features[[i]].astype(float))[0]


def test_images_of_a_group_are_no_neighbours_and_ties_go_by_index():
    features = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 1], [1, 1]])
    groups = np.array([0, 0, 1, 2, 3, 4])
    found = neighbours(features, groups, 3)
    assert found.tolist() == [[2, 4, 5], [2, 4, 5], [0, 1, 4], [4, 5, 0], [5, 0, 1], [4, 0, 1]]
    assert neighbours(features, groups).shape == (6, 2)  # half of the four others
    assert neighbours(features[:2], groups[:2]).shape == (2, 0)
    assert vote(np.array([[3, 1, 1], [2, 1, 4], [5, 5, 1]])).tolist() == [1, 2, 5]
    assert vote(np.empty((2, 0), dtype=np.int64)).tolist() == [-1, -1]


def stored(features, **distances):
    model = Predictions.empty(len(features))
    model.compare(np.arange(len(features)), {"features": features.astype(np.float16), **distances})
    return model


def test_columns_by_hand():
    rng = np.random.default_rng(0)
    dense, own = rng.normal(size=(2, 12, 4))
    labels, groups = np.repeat([0, 1, 2], 4), np.arange(12)
    values = {name: rng.uniform(size=12).astype(np.float32) for name in FEATURES[1:]}
    models = {"baseline": stored(dense, cosine=np.ones(12)), "lotm": stored(own, **values)}
    columns = feature_columns(models, labels, groups)
    assert columns["lotm"]["patch_error"] == pytest.approx(values["patch_error"].mean())
    theirs, mine = (neighbours(part.astype(np.float16), groups) for part in (dense, own))
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(theirs, mine, strict=True)])
    assert columns["lotm"]["knn_agreement"] == pytest.approx(shared)
    right = [100 * (vote(labels[part]) == labels).mean() for part in (theirs, mine)]
    assert columns["baseline"]["knn_top1"] == pytest.approx(right[0])
    assert columns["lotm"]["knn_drop"] == pytest.approx(right[0] - right[1])
    for name in ("feature_cosine", "feature_error", "knn_agreement", "knn_drop"):
        low, middle, high = (columns["lotm"][f"{name}{end}"] for end in ("_lo", "", "_hi"))
        assert low <= middle <= high
    assert columns["baseline"].keys() == {"knn_top1", "knn_top1_lo", "knn_top1_hi"}
    unlabelled = feature_columns(models, None, groups)
    assert not any(name.startswith(("knn_top1", "knn_drop")) for name in unlabelled["lotm"])
    models["baseline"].clear(np.array([0, 1]))  # unreadable images do not count
    assert feature_columns(models, None, groups)["lotm"]["feature_error"] == pytest.approx(
        values["error"][2:].mean()
    )


@pytest.mark.slow
def test_an_encoder_is_compared_by_its_features(finished):
    root, text = finished
    assert "The model has no classifier" in text
    assert "Cosine [95 % interval]" in text
    rows = from_csv((root / "out" / "leaderboard.csv").read_text())
    by_method = {row.method: row for row in rows}
    assert set(by_method) == {"baseline", "lotm", "topk", "random", "lowres"}
    predictions = RunPredictions.unpack((root / "out" / "predictions.npz").read_bytes())
    for name, model in predictions.models.items():
        assert model.features.shape == (12, 48)
        row = by_method[name]
        assert (row.top1, row.drop, row.agreement, row.nll) == (None,) * 4
        assert row.knn_top1_lo <= row.knn_top1 <= row.knn_top1_hi
        if name != "baseline":
            assert row.feature_cosine == pytest.approx(model.cosine.mean(), rel=1e-6)
            assert row.patch_error_lo <= row.patch_error <= row.patch_error_hi
            assert 0 <= row.knn_agreement <= 1
    cosines = [row.feature_cosine for row in rows[1:]]
    assert cosines == sorted(cosines, reverse=True)
    for name in ("table.md", "table.tex", "report.html"):
        content = (root / "out" / name).read_text()
        assert "Patch cosine" in content
        assert "k-NN top-1" in content
        assert "Top-1" not in content


@pytest.mark.slow
def test_a_run_of_features_is_verified_and_resumed(finished):
    root, _ = finished
    code, text = run("leaderboard", "verify", root / "out", "--sample", 8)
    assert code == 0, text
    assert "confirmed, to the last bit" in text
    assert "feature_" not in text.split("Not computed again")[1]
    assert "was finished on" in compare(root, "--out", root / "out")[1]


@pytest.mark.slow
@pytest.mark.parametrize("forged", ["cosine", "features"])
def test_forged_features_are_not_confirmed(finished, tmp_path, forged):
    root, _ = finished
    shutil.copytree(root / "out", tmp_path / "out")
    arrays = dict(np.load(root / "out" / "predictions.npz"))
    arrays[f"lotm/{forged}"] = arrays[f"lotm/{forged}"][::-1] / 2
    np.savez_compressed(tmp_path / "out" / "predictions.npz", **arrays)
    code, text = run("leaderboard", "verify", tmp_path / "out", "--method", "lotm", "--sample", 8)
    assert code == 1
    assert {"cosine": "contradicts its predictions", "features": "knn_agreement"}[forged] in " ".join(
        text.split()
    )


@pytest.mark.slow
def test_boards_keep_the_cosine_and_say_what_they_cannot_check(finished, tmp_path):
    (root, _), board = finished, tmp_path / "board.csv"
    code, text = run("leaderboard", "add", root / "out", "--board", board)
    assert code == 0, text
    assert "no classifier, so no top-1" in text
    assert pd.read_csv(board).feature_cosine.notna().sum() == 4
    code, text = run("leaderboard", "verify", board, "--sample", 8)
    assert code == 0, text
    unchecked = text.split("Not computed again")[1]
    assert "knn_agreement" in unchecked
    assert "feature_cosine" not in unchecked


@pytest.mark.slow
def test_images_without_labels_at_several_budgets(finished, tmp_path):
    root, _ = finished
    settings = ("--budgets", "0.2,0.3", "--no-labels", "--no-controls", "--out", tmp_path)
    code, text = compare(root, *settings, command="sweep")
    assert code == 0, text
    assert text.count("Cosine") == 2, text
    table = (tmp_path / "table.md").read_text()
    assert "k-NN agreement" in table
    assert "k-NN top-1" not in table


def test_an_interrupted_run_keeps_its_features():
    """What is packed and entered again is the same, features included."""
    evaluation = Evaluation.empty(4, ["lotm"])
    for model in evaluation.models.values():
        model.compare(np.array([0, 2]), {name: np.arange(2, dtype=np.float32) for name in FEATURES})
    evaluation.done[[0, 2]] = True
    again = Evaluation.empty(4, ["lotm"])
    again.absorb(evaluation.take(np.array([0, 2])).pack())
    for name in FEATURES:
        before, after = getattr(evaluation.methods["lotm"], name), getattr(again.methods["lotm"], name)
        assert np.array_equal(before, after, equal_nan=True)
