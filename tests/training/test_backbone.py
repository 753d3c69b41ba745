"""Training is a function of its recipe, survives a kill, and its parts do what they say."""

import numpy as np
import pytest
import torch

from tokred import configs
from tokred.errors import TokredError
from tokred.training.backbone import train
from tokred.training.backbone.images import TrainingImages
from tokred.training.backbone.init import sincos_position
from tokred.training.backbone.recipe import Recipe
from tokred.training.backbone.train import Normalize, Trainer, features


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Replace DeiT by a model of depth 2 and width 48, so that steps take milliseconds."""
    build = train.zoo.build
    monkeypatch.setattr(
        train.zoo,
        "build",
        lambda name, num_classes=None, img_size=None, **options: build(
            name, num_classes, img_size, **{"embed_dim": 48, "depth": 2, "num_heads": 3, **options}
        ),
    )


RECIPE = Recipe(images=64, batch_size=8, curriculum=0.5, whole_every=2, whole_last=0.1)


def finished(out, stop=None):
    trainer = Trainer(RECIPE, out, workers=0)
    trainer.resume()

    def progress(state):
        if state.step == stop:
            raise KeyboardInterrupt

    try:
        trainer.run(progress, interval=1e9)
    except KeyboardInterrupt:
        pass
    return trainer


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole = finished(tmp_path / "whole")
    assert finished(tmp_path / "cut", stop=3).step == 3
    resumed = finished(tmp_path / "cut")
    assert resumed.step == whole.step == 8
    for a, b in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    finished(tmp_path, stop=1)
    with pytest.raises(TokredError, match="differs in lr; choose another folder"):
        Trainer(RECIPE.model_copy(update={"lr": 1.0}), tmp_path).resume()
    (tmp_path / "checkpoint.pt").write_bytes(b"cut off")
    with pytest.raises(TokredError, match="delete it to start over"):
        Trainer(RECIPE, tmp_path).resume()


def test_written_weights_compute_what_was_trained_in_a_smaller_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "accuracy", lambda model, split: 0.0)
    trainer = Trainer(RECIPE, tmp_path, workers=0)
    path = trainer.finish("tokred train")
    written = train.zoo.load_file("deit_t", path)
    for norm in (module for module in written.model.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps /= 64  # the only part that is not invariant
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(written.model(x), trainer.model.eval()(x), rtol=1e-2, atol=2e-3)  # float16
        torch.testing.assert_close(written.model.pos_embed, trainer.model.pos_embed / 8, rtol=1e-3, atol=1e-6)
    assert written.card["residual_scale"] == 0.125
    source = train._source(str(path))
    for a, b in zip(source.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss(tmp_path):
    trainer = Trainer(Recipe(images=16_000, batch_size=16, lr=2e-3, warmup=0.0), tmp_path, workers=0)
    batch = next(iter(trainer.batches()))

    def loss():
        with torch.no_grad():
            logits = trainer.model.forward_head(
                features(trainer.model, Normalize(trainer.model)(batch[0]), batch[3])
            )
            return torch.nn.functional.cross_entropy(logits, batch[1]).item()

    before = loss()
    for _ in range(40):
        trainer.learn(batch)
    assert loss() < 0.3 * before  # one batch is learned by heart


def test_windows_show_the_digit_at_the_place_it_has_in_the_image():
    recipe = Recipe(images=1000, batch_size=10, curriculum=0.0, whole_every=1000, whole_last=0.0)
    data, fits = TrainingImages(recipe, 16), 0
    for index in range(20, 40):
        pixels, label, targets, tokens = data[index]
        image, mask, same, _ = train.photodigits.render("train", 0, index)
        assert (tuple(pixels.shape), label) == ((3, 112, 112), same)
        row, column = divmod(tokens[0].item(), 14)
        crop = np.asarray(image)[16 * row : 16 * row + 112, 16 * column : 16 * column + 112]
        assert np.array_equal(pixels.numpy(), crop.transpose(2, 0, 1))
        whole = train.photodigits.token_targets(mask, label, 14)
        assert (targets.numpy() == whole[tokens.numpy()]).all()
        left, top, right, bottom = mask.getbbox()
        if all(-(-high // 16) - low // 16 <= 7 for low, high in ((left, right), (top, bottom))):
            fits += 1
            assert (targets == label).sum() == (whole == label).sum()  # the window holds all of the ink
    assert fits > 5


def test_whole_images_take_the_models_own_path():
    trainer = Trainer(Recipe(images=8, batch_size=8), None)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        want = trainer.model.forward_features(x)
        got = features(trainer.model, x, torch.arange(196).expand(2, -1))
    assert torch.allclose(got, want, atol=1e-5)


def test_schedule_of_a_recipe():
    recipe = Recipe(images=3200, batch_size=32, warmup=0.1, curriculum=0.5, whole_every=10, whole_last=0.05)
    assert recipe.steps == 100
    assert (recipe.ease(0), recipe.ease(25), recipe.ease(50), recipe.ease(99)) == (1.0, 0.5, 0.0, 0.0)
    assert [recipe.whole(s) for s in (0, 40, 50, 51, 60, 94, 95, 99)] == [
        False,
        False,
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert recipe.lr_scale(0) == pytest.approx(1 / 11)
    assert recipe.lr_scale(10) == pytest.approx(1.0)
    assert recipe.lr_scale(99) == pytest.approx(0.5 * (1 + np.cos(np.pi * 89 / 90)))
    again = Recipe(
        images=6400, batch_size=32, warmup=0.1, curriculum=0.25, whole_every=10, whole_last=0.05, cycles=2
    )
    for step in (0, 10, 47, 60, 99):
        assert again.lr_scale(step) == pytest.approx(recipe.lr_scale(step))
        assert again.lr_scale(100 + step) == pytest.approx(recipe.lr_scale(step))
        assert again.ease(step) == recipe.ease(step)
        assert again.whole(step) == recipe.whole(step)
    assert not again.whole(107)
    assert again.whole(196)


def test_position_embedding_in_closed_form():
    table = sincos_position(3, 8)
    x, y = 2, 1
    frequencies = [1.0, 10_000**-0.5]
    want = [np.sin(x * f) for f in frequencies] + [np.cos(x * f) for f in frequencies]
    want += [np.sin(y * f) for f in frequencies] + [np.cos(y * f) for f in frequencies]
    np.testing.assert_allclose(table[y * 3 + x], want, atol=1e-6)


def test_shipped_recipes_are_valid():
    assert {"deit_s", "deit_t"} <= set(configs.names("train"))
    assert Recipe(**configs.load("train", "deit_s")).model == "deit_s"
    with pytest.raises(TokredError, match="Did you mean: .*deit_s"):
        configs.load("train", "deit_x")
    with pytest.raises(TokredError, match="images is wrong: .*got -1"):
        configs.parse(Recipe, {"images": -1}, "recipe.yaml")
    with pytest.raises(TokredError, match="imges is wrong"):
        configs.parse(Recipe, {"imges": 1}, "recipe.yaml")
