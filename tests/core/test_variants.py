"""Variants: one method with several options side by side, each under a name of its own."""

import csv

import pytest
import torch
from helpers.command import run

import tokred
from tokred.core import registry
from tokred.core.options import default_options
from tokred.errors import TokredError, UnknownName
from tokred.evaluation.config import Config
from tokred.testing import make_view, tiny_vit


def test_a_variant_is_the_method_with_other_defaults():
    made, base = registry.get("lotm[weighted=1,order=append]"), registry.get("lotm")
    assert made.name == "lotm[order=append,weighted=True]"  # in the order of the signature
    assert registry.get(made.name) is made
    assert default_options(made) == default_options(base) | {"order": "append", "weighted": True}
    assert (base.name, default_options(base)["weighted"], default_options(base)["order"]) == (
        "lotm",
        False,
        "inplace",
    )
    assert (made.stages, made.knob, made.__doc__) == (base.stages, base.knob, base.__doc__)
    view = make_view(n=12)
    wanted = base(12, 8, 48, 3, order="append", weighted=True)(view)
    assert torch.equal(made(12, 8, 48, 3)(view).pool(view.x), wanted.pool(view.x))
    assert torch.equal(made(12, 8, 48, 3, order="inplace")(view).labels(), base(12, 8, 48, 3)(view).labels())


@pytest.mark.slow
def test_reduce_takes_one(images):
    model = tiny_vit()
    reduced = tokred.reduce(model, "lotm[weighted=True]", 0.2, stages=(2, 3), proportional=True)
    wanted = tokred.reduce(model, "lotm", 0.2, stages=(2, 3), weighted=True, proportional=True)
    assert reduced.plan.options == wanted.plan.options
    with torch.no_grad():
        assert torch.equal(reduced(images), wanted(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lotm[]", "METHOD.OPTION=VALUE,....*got 'lotm..'"),
        ("lotm[curve]", "is named METHOD"),
        ("lotm[curve=snake", "is named METHOD"),
        ("lotm[curve=spiral]", "lotm.curve must be one of raster, snake, hilbert, got 'spiral'"),
        ("lotm[curv=snake]", "Unknown option of lotm 'curv'. Did you mean: curve"),
        ("lotmm[curve=snake]", "Unknown method 'lotmm'. Did you mean: lotm"),
    ],
)
def test_mistakes(name, message):
    for ask in (registry.get, lambda name: registry.select([name]), lambda name: Config(methods=(name,))):
        with pytest.raises(TokredError, match=message):
            ask(name)


def test_each_is_compared_under_its_name():
    config = Config(methods=("lotm", "lotm[weighted=1]", "lotm[weighted=true]"))
    assert config.methods == ("lotm", "lotm[weighted=True]")
    assert Config.from_mapping(config.to_mapping()) == config
    with pytest.raises(UnknownName):
        Config(methods=("lotm",), options={"lotm[weighted=True]": {"metric": "keys"}})


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each(tmp_path):
    names = "lotm,lotm[weighted=true,metric=keys],topk"
    options = ("--model", "deit_t", "--limit", "2", "--batch-size", "2", "--workers", "0", "--no-controls")
    code, text = run(
        "sweep",
        *options,
        "--precision",
        "fp32",
        "--budgets",
        "0.2,0.4",
        "--methods",
        names,
        "--out",
        tmp_path,
    )
    assert code == 0, text
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines()))
    named = "lotm[weighted=True,metric=keys]"
    assert sorted(row["method"] for row in rows) == sorted(["baseline", *("lotm", named, "topk") * 2])
    plain, other = (next(row for row in rows if row["method"] == name) for name in ("lotm", named))
    assert "metric=x" in plain["options"]
    assert "metric=keys" in other["options"]
    assert named in text
