"""Images for fitting: their order, augmentation, splits and labels."""

import pytest
import torch
from helpers.pictures import draw

from tokred import configs
from tokred.errors import TokredError
from tokred.testing import tiny_vit
from tokred.training.fit.data import Shuffled, check_labels, open_images, training_transform
from tokred.training.fit.recipe import FitRecipe


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(pictures):
    images = open_images(pictures, 0, 2)
    data = Shuffled(images, lambda image: 0, seed=3)
    orders = [[data.index(epoch * 40 + i) for i in range(40)] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]


def test_augmentation_is_a_function_of_the_position(pictures):
    recipe = FitRecipe(
        images=8, flip=0.5, crop_scale=0.2, color_jitter=0.4, erase=0.5, auto_augment="rand-m9-mstd0.5-inc1"
    )
    images = open_images(pictures, 0, 2)
    data = Shuffled(images, training_transform(tiny_vit(), recipe, as_drawn=False), seed=3)
    state = torch.get_rng_state()
    assert torch.equal(data[5].image, data[5].image)
    assert torch.equal(state, torch.get_rng_state())
    same = next(p for p in range(40, 80) if data.index(p) == data.index(5))
    assert not torch.equal(data[5].image, data[same].image)


def test_validation_images_come_from_all_over_the_validation_split(pictures, monkeypatch):
    monkeypatch.setattr("tokred.training.fit.data.VALIDATION", 4)
    images = open_images(pictures, 0, 2)
    assert [images.validation.images[i][1] for i in range(4)] == [0, 0, 1, 1]


def test_a_folder_without_splits_keeps_every_tenth_image_for_validation(tmp_path):
    draw(tmp_path, 30, 0)
    images = open_images(str(tmp_path), 0, 2)
    assert (images.n, len(images.validation)) == (27, 3)
    assert "every tenth image" in images.note


def test_labels_that_are_none_of_the_models_are_refused_or_left_out(pictures, tmp_path):
    with pytest.raises(TokredError, match="2 classes, but the model has 10; fit without labels"):
        open_images(pictures, 0, 10)
    assert not open_images(pictures, 0, 10, labels=False).labelled
    draw(tmp_path / "x", 20, 0)
    one = tmp_path / "one"
    (tmp_path / "x" / "a").rename(one)
    holder = tmp_path / "holder"
    holder.mkdir()
    one.rename(holder / "images")
    assert not open_images(str(holder), 0, 10).labelled  # one folder for all is no label
    with pytest.raises(
        TokredError, match=r"The data has the label 10, but the classes of the model are 0 to 9"
    ):
        check_labels(torch.tensor([0, 10]), 10)


def test_splits_that_do_not_go_together_are_refused(tmp_path):
    draw(tmp_path / "train", 4, 0)
    draw(tmp_path / "validation", 1, 1)  # only a/
    with pytest.raises(TokredError, match="different class folders; both need the same ones"):
        open_images(str(tmp_path), 0, 2)
    (tmp_path / "validation").rename(tmp_path / "test")
    images = open_images(str(tmp_path), 0, 2)
    assert (images.n, len(images.validation)) == (3, 1)  # held out from the training images
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(TokredError, match="has no training split"):
        open_images(str(tmp_path), 0, 2)


def test_a_policy_that_timm_does_not_know_is_one_sentence():
    recipe = FitRecipe(images=8, auto_augment="nonsense")
    with pytest.raises(TokredError, match="a policy of timm, such as .* got 'nonsense'"):
        training_transform(tiny_vit(), recipe, as_drawn=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": float("inf")}, "lr is wrong: .*finite"),
        ({"betas": [0.9, 1.5]}, "betas.1 is wrong: .*less than 1"),
        ({"min_lr": 1.0}, "In mine.yaml: min_lr is above lr"),
        ({"epochs": 1}, "In mine.yaml: give either images or epochs"),
    ],
)
def test_values_of_a_recipe_that_cannot_be_are_one_sentence(values, words):
    with pytest.raises(TokredError, match=words):
        configs.parse(FitRecipe, {"images": 8, **values}, "mine.yaml")
