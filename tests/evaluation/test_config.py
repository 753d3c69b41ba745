"""Configurations: checked and typed once, and the same through a file and back."""

import pytest
import yaml
from helpers.command import run

from tokred.core import registry
from tokred.errors import InvalidSetting, TokredError
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config, Fixed, budget_range


def test_a_configuration_comes_back_from_yaml():
    config = Config(
        methods=("lotm", "tome"),
        options={"lotm": {"weighted": "1"}},
        stages=(3, 6),
        fixed=(Fixed("lotm", 48, (4, 7)), Fixed("tome", 8)),
    )
    mapping = config.to_mapping()
    assert list(mapping) == list(Config.__dataclass_fields__)
    assert mapping["options"] == {"lotm": {"weighted": True}}
    assert Config.from_mapping(yaml.safe_load(yaml.safe_dump(mapping))) == config
    assert Config.from_mapping({}) == Config()
    assert Config().methods == tuple(registry.select())
    assert Config.from_mapping({"budgets": 0.2}).budgets == (0.2,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"budget": 0.3}, "Unknown setting 'budget'. Did you mean: budgets"),
        ({"budgets": ["much"]}, r"budgets.0: should be a valid number, .* got 'much'"),
        ({"budgets": [0.3, 1.0]}, "budgets is the fraction of FLOPs to save"),
        ({"budgets": []}, "budgets is empty"),
        ({"budgets": [i / 1000 for i in range(1, 500)]}, "budgets takes at most 100 budgets, got 499"),
        ({"methods": "lotm"}, "methods: should be a valid list, got 'lotm'"),
        ({"methods": []}, "methods is empty"),
        ({"methods": ["tomee"]}, "Unknown method 'tomee'. Did you mean: tome"),
        ({"limit": 2.5}, "limit: should be a valid integer"),
        ({"limit": 0}, "limit is the number of images"),
        ({"protocol": "nativ"}, "protocol: should be 'native' or 'common', got 'nativ'"),
        ({"fixed": [{"method": "lotm", "knob": "a"}]}, "fixed.0.knob: should be a valid number"),
        ({"fixed": [{"method": "lotmm", "knob": 1}], "methods": ["lotm"]}, "Unknown method 'lotmm'"),
        ({"fixed": [{"method": "lotm", "knob": 4, "stages": []}]}, "fixed gives lotm no layers"),
        ({"plugins": ["a\0b.py"]}, "There is no Python file"),
        ({"options": {"lotm": {"wighted": 1}}}, "Did you mean: weighted"),
        ({"options": {"lotm": {"weighted": "maybe"}}}, "lotm.weighted must be true or false"),
        ({"options": {"tome": {"metric": "x"}}, "methods": ["lotm"]}, "options sets an option of tome"),
        ({"img_size": 99_999_999}, "img_size is the side of the model's input in pixels, from 1 to 4096"),
        ({"data": ""}, "data is empty"),
        ({"weights": ""}, "weights is empty"),
        ({"model": ""}, "model is empty"),
    ],
)
def test_what_is_wrong_is_one_sentence(values, words):
    with pytest.raises(TokredError, match=words):
        Config.from_mapping(values)


def test_a_message_names_the_argument_or_the_flag():
    with pytest.raises(InvalidSetting) as raised:
        Config(batch_size=0)
    assert str(raised.value).startswith("batch_size is the number")
    assert raised.value.named("--batch-size").startswith("--batch-size is the number")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", ""), "--methods is empty"),
        (("--data", ""), "--data is empty"),
        (("--weights", ""), "--weights is empty"),
        (("--methods", "lotm", "--set", "tome.metric=x"), "--set sets an option of tome"),
        (("--img-size", "99999999"), "--img-size is the side of the model's input in pixels, from 1 to 4096"),
    ],
)
def test_the_command_line_refuses_what_is_empty_or_means_nothing(arguments, words):
    code, text = run("compare", *arguments)
    assert (code, words in text) == (2, True), text


@pytest.mark.slow
def test_an_option_is_one_value_however_it_is_written():
    def key(**options):
        methods = {"methods": ("lotm",), "options": {"lotm": options}} if options else {"methods": ("lotm",)}
        job = Job(Config("deit_t", controls=False, limit=2, **methods))
        return job.key, job.configuration["options"]["lotm"]

    true = [key(weighted=value) for value in ("1", "true", "True", True)]
    assert all(same == true[0] for same in true)
    assert true[0][1]["weighted"] is True
    assert key(weighted="false") == key(weighted=0) == key() != true[0]


def test_ranges_of_budgets_are_bounded():
    assert budget_range("0.1:0.6:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    for text in ("0.1:0.6:1e-9", "0.1:0.6:1e-320", "nan:1:1", "0.1:0.6", "0.6:0.1:0.1"):
        with pytest.raises(TokredError, match="--budgets"):
            budget_range(text)
