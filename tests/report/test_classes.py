"""Drops by class against one resample after another, and which classes are shown."""

import numpy as np
import pytest
from helpers.pages import check_self_contained, html, material
from helpers.reports import made_up, run_info

from tokred.report import classes
from tokred.tables.row import Row


def oracle(labels, dense, found, groups, resamples=4000):
    """Drops by class and their intervals, one class and one resample after another."""
    rng, result = np.random.default_rng(1), {}
    for label in np.unique(labels):
        of = labels == label
        lost = (dense[of] == label).astype(float) - (found[of] == label)
        members = [lost[groups[of] == group] for group in np.unique(groups[of])]
        means = [
            100 * np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]).mean()
            for _ in range(resamples)
        ]
        result[str(label)] = (100 * lost.mean(), *np.quantile(means, [0.025, 0.975]))
    return result


def test_drops_by_class_and_their_intervals():
    rows, arrays = made_up(classes=3, per_class=24, methods=("lotm", "topk"))
    arrays["groups"] = np.arange(72) // 2  # images in pairs
    arrays["topk/prediction"][arrays["groups"] % 3 < 2] = 7
    found = classes.drops(material(rows, arrays))
    for k, method in enumerate(found.methods):
        expected = oracle(
            arrays["labels"], arrays["baseline/prediction"], arrays[f"{method}/prediction"], arrays["groups"]
        )
        for c, name in enumerate(found.names):
            drop, lo, hi = expected[name]
            assert found.drop[k, c] == pytest.approx(drop)
            assert found.lo[k, c] == pytest.approx(lo, abs=4.2)  # one image of 24, by chance of the draws
            assert found.hi[k, c] == pytest.approx(hi, abs=4.2)
    assert found.images.tolist() == [24, 24, 24]
    assert found.certain()[found.methods.index("topk")].all()


def test_plans_at_knobs_have_their_own_outcomes():
    """As in the paper's Table 2: one method at a budget, and at one knob at two sets of layers."""
    rows, arrays = made_up(methods=("lotm",))
    right = arrays["labels"]
    for stages in ("4 7 10", "4 7 11"):
        rows.append(Row("lotm", knob="40", stages=stages, tokens="156 116 76"))
        arrays[f"lotm@40@{stages}/prediction"] = (
            np.where(np.arange(len(right)) % 2, right, -1) if stages == "4 7 11" else right
        )
    rows.append(Row("lotm", knob="50", stages="4 7 10", tokens="146 96 48"))  # nothing is known of its images
    found = classes.drops(material(rows, arrays))
    assert found.methods == ["lotm, 30 %", "lotm, knob 40, layers 4 7 10", "lotm, knob 40, layers 4 7 11"]
    base = np.mean(arrays["baseline/prediction"] == right)
    np.testing.assert_allclose(found.drop[1:] @ found.images / 40, [100 * (base - 1), 100 * (base - 0.5)])


def test_drops_leave_out_images_without_a_label_or_by_wish_a_prediction():
    rows, arrays = made_up(classes=2, per_class=10, methods=("lotm",))
    arrays["labels"][0] = -2
    for name in ("baseline", "lotm"):
        arrays[f"{name}/prediction"][1] = -1
    assert classes.drops(material(rows, arrays)).images.tolist() == [9, 10]
    info = run_info()
    info["configuration"]["on_error"] = "skip"
    assert classes.drops(material(rows, arrays, info)).images.tolist() == [8, 10]
    assert classes.drops(material(rows)) is None


@pytest.mark.slow
def test_of_many_classes_the_extremes_of_each_method():
    rows, arrays = made_up(classes=300, per_class=5, methods=tuple(f"m{k}" for k in range(12)), speed=False)
    found_material = material(rows, arrays, run_info(class_names=[f"class {c}" for c in range(300)]))
    found = classes.drops(found_material)
    assert not found.few
    for k in range(12):
        order = sorted(range(300), key=lambda c: found.drop[k, c])
        assert found.drop[k, found.worst(k)].tolist() == [found.drop[k, c] for c in order[::-1][:15]]
        assert found.drop[k, found.best(k)].tolist() == [found.drop[k, c] for c in order[:15]]
        assert np.isfinite(found.lo[k, found.worst(k)]).all()
    page = html(found_material)
    check_self_contained(page)
    assert len(page) < 1_500_000
    assert "class 299" in page or "class 298" in page
    assert "the extremes of 300 classes" in page
