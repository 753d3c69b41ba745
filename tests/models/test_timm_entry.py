"""`tokred_vit` in timm's registry, and the calls that timm's scripts make."""

import argparse
import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3, ParseKwargs, accuracy

import tokred
from tokred.core.flops import count
from tokred.errors import TokredError

SMALL = "img_size=48 patch_size=8 embed_dim=48 depth=4 num_heads=3 num_classes=10"


def created(text):
    """The model that a script makes of `--model-kwargs`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    arguments = parser.parse_args(["--model-kwargs", *text.split()])
    return timm.create_model("tokred_vit", pretrained=False, drop_rate=0.0, **arguments.model_kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["method=lotm budget=0.2 stages=2,3 order=append", "method=sit allow_unfitted=1 keep=0.7 stages=2,3"],
)
def test_timms_scripts_train_save_and_validate_a_reduced_model(method, tmp_path):
    text = f"base=deit_tiny_patch16_224 {method} {SMALL}"
    model = created(text)
    assert model.plan.stages == (2, 3)
    data = resolve_data_config({}, model=model)
    assert data["mean"] == tuple(model.pretrained_cfg["mean"])
    model.set_grad_checkpointing(enable=False)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}
    ema = ModelEmaV3(model, decay=0.9)
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    model.train()
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    saver = CheckpointSaver(
        model=model, optimizer=optimizer, model_ema=ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(0, metric=1.0)
    validated = created(text)
    load_checkpoint(validated, str(tmp_path / "last.pth.tar"), use_ema=False)
    model.eval()
    validated.eval()
    with torch.no_grad():
        assert torch.equal(validated(images), model(images))
        top1, _ = accuracy(validated(images), labels, topk=(1, 5))
    assert 0 <= top1 <= 100


def test_settings_of_the_reduction_are_those_of_reduce():
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=48, num_heads=3)
    by_tokens = tokred.reduce(model, "topk", tokens=(20, 15, 10))
    assert by_tokens.plan.tokens == (20, 15, 10)
    assert tokred.reduce(model, "topk", keep=0.7).plan.tokens == (25, 17, 12)
    assert tokred.reduce(model, "lotm", keep=0.3, stages=[2]).plan.tokens == (18,)
    for settings, message in (
        ({"keep": 0.5, "tokens": (20, 15, 10)}, "one of budget, keep, tokens and threshold"),
        ({"keep": 0.5, "budget": 0.3}, "one of budget, keep, tokens and threshold"),
        ({"keep": 1.5}, "fraction of tokens"),
        ({"tokens": (20,)}, "3 layers here .4 7 10., so tokens needs as many"),
        ({"tokens": (20, 25, 10)}, "can reduce 20 tokens to between 1 and 20, not to 25"),
    ):
        with pytest.raises(TokredError, match=message):
            tokred.reduce(model, "topk", **settings)


def test_a_base_and_a_method_are_asked_for():
    with pytest.raises(TokredError, match="base=NAME method=NAME"):
        timm.create_model("tokred_vit", method="lotm")


@pytest.mark.parametrize("method", ["kmedoids", "lotm"])
def test_the_summary_adds_up_and_the_trace_is_the_grid(method):
    reduced = created(f"base=deit_tiny_patch16_224 method={method} budget=0.2 stages=2,3 {SMALL}")
    table = reduced.tokred.summary()
    assert float(table.rows[-1][2]) == pytest.approx(count(reduced).total / 1e9, abs=1e-4)
    assert [row[1] for row in table.rows[1:5]] == [
        "37",
        *(str(1 + n) for n in reduced.plan.tokens),
        table.rows[4][1],
    ]
    assert f"{method} at layers 2 3" in str(table)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    trace = reduced.tokred.trace(images)
    assert {layer: labels.shape for layer, labels in trace.items()} == {2: (2, 6, 6), 3: (2, 6, 6)}
    assert int(trace[3].max()) == reduced.plan.tokens[-1] - 1
    assert reduced.tokred.plan is reduced.plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    ["import sys, tokred; assert 'torch' not in sys.modules; import timm", "import timm, tokred"],
)
def test_importing_tokred_is_light_and_registers_in_either_order(program):
    program += "; assert timm.is_model('tokred_vit')"
    subprocess.run([sys.executable, "-c", program], check=True)
