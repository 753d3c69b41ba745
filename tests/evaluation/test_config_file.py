"""Comparisons as YAML files: named ones, mistakes with their lines, and the config.yaml of every run."""

import csv
import json
import sys

import pytest
from helpers.command import run
from hypothesis import given, settings
from hypothesis import strategies as st

from tokred import configs
from tokred.core import plugins, registry
from tokred.core.schedule import Schedule
from tokred.errors import TokredError
from tokred.evaluation.config import Config, Fixed
from tokred.evaluation.config_file import config_text, read_config

pytestmark = pytest.mark.usefixtures("shared_costs", "plain_outputs")

SMALL = ("--limit", "2", "--batch-size", "2", "--workers", "0", "--precision", "fp32", "--no-controls")


@pytest.mark.parametrize("name", configs.names("compare"))
def test_named_configurations_can_be_read_and_say_what_they_are(name):
    assert isinstance(read_config(name), Config)
    assert 20 < len(configs.summary("compare", name)) < 130


def test_the_default_configuration_is_the_default():
    assert read_config("default") == Config()


def test_smoke_is_small():
    config = read_config("smoke")
    assert (config.limit, len(config.methods)) == (64, 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: deit_t\nbugets: [0.3]\n", "line 2: Unknown setting 'bugets'. Did you mean: budgets"),
        ("# a comment\n\nlimit: many\n", "line 3: limit: should be a valid integer"),
        ("limit: true\n", "line 1: limit takes numbers, and true is none"),
        ("fixed:\n  - {method: tome, knob: true}\n", "line 1: fixed takes numbers, and true is none"),
        ("seed: 1\nschedule: {tokens: [9, yes]}\n", "line 2: schedule: tokens takes numbers, and true is"),
        ("budgets:\n  - 0.3\n  - x\n", "line 3: budgets.1: should be a valid number"),
        ("budgets: [1.5]\n", "line 1: budgets is the fraction of FLOPs to save"),
        ("seed: 1\nprotocol: nativ\n", "line 2: protocol: should be 'native' or 'common', got 'nativ'"),
        ("fixed:\n  - {method: lotm, knob: 4, stags: [4]}\n", "line 2: fixed.0.stags"),
        ("seed: 1\nschedule: decresing\n", "line 2: schedule: Unknown schedule 'decresing'. Did you mean"),
        ("schedule:\n  tokens: [3, x]\n", "line 1: schedule: tokens.1: should be a valid integer"),
        ("budgets: [0.4]\nschedule: {tokens: [9, 8, 7]}\n", "line 1: budgets must be left out: the explicit"),
        ("stages: [4]\nschedule: {stages: [5]}\n", "line 1: stages must be left out: the schedule"),
        ("methods: [lotmm]\n", "Unknown method 'lotmm'. Did you mean: lotm"),
        ("model: [\n", "cannot be read: line 2"),
        ("limit: 8\nseed: 1\nlimit: 9\n", "cannot be read: line 3: limit is set twice"),
        ("- 1\n", "must be a mapping"),
        ("model: &a {b: *a}\n", "cannot be read: more than 10,000 values"),
        ("[" * 5000, "cannot be read: maximum recursion depth"),
        ("model: !!python/object/apply:os.getcwd []\n", "cannot be read: line 1: could not determine"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TokredError) as error:
        read_config(str(path))
    assert "mine.yaml" in str(error.value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_suggests_another():
    with pytest.raises(TokredError, match="Unknown configuration 'smok'. Did you mean: smoke"):
        read_config("smok")


@settings(max_examples=10)
@given(
    budgets=st.lists(st.floats(0.01, 0.99), max_size=3),
    knob=st.integers(1, 40),
    stages=st.sampled_from([None, "all"]) | st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple),
    shape=st.sampled_from(
        [None, Schedule(shape="decreasing"), Schedule("own", model="deit_small_patch16_224")]
    ),
    data=st.none() | st.text(min_size=1, max_size=8).filter(str.strip),
    labels=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, budgets, knob, stages, shape, data, labels):
    config = Config(
        budgets=tuple(budgets),
        options={"lotm": {"order": "append"}},
        stages=stages,
        schedule=shape,
        data=data,
        labels=labels,
        fixed=(Fixed("lotm", knob, None if stages == "all" else stages),),
    )
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config_text(config, path), encoding="utf-8")
    assert read_config(str(path)) == config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    options = ("--model", "deit_t", "--methods", "lotm,tome", "--set", "lotm.order=append")
    code, text = run("compare", *options, *SMALL, "--out", out)
    assert code == 0, text
    return out


@pytest.mark.slow
def test_the_configuration_that_a_run_leaves_is_the_same_run(finished):
    code, text = run("compare", "--config", finished / "config.yaml", "--workers", "0", "--out", finished)
    assert code == 0, text
    assert "was finished on" in text  # the same key: nothing is evaluated again
    saved = (finished / "config.yaml").read_text()
    for line in (
        "limit: 2",
        "precision: fp32",
        "device: cpu",
        "batch_size: 2",
        "order: append",
        "split: null",
    ):
        assert line in saved


@pytest.mark.slow
def test_flags_win_over_the_configuration(finished, tmp_path):
    flags = ("--methods", "lotm", "--set", "lotm.weighted=true", "--seed", "3", "--workers", "0")
    code, text = run("compare", "--config", finished / "config.yaml", *flags, "--out", tmp_path / "out")
    assert code == 0, text
    chosen = json.loads((tmp_path / "out" / "run.json").read_text())["configuration"]
    assert (chosen["methods"], chosen["seed"], chosen["limit"], chosen["model"]) == (["lotm"], 3, 2, "deit_t")
    assert chosen["options"]["lotm"]["order"] == "append"  # of the file
    assert chosen["options"]["lotm"]["weighted"] is True  # of the flag


@pytest.mark.slow
def test_a_schedule_file_takes_the_place_of_the_budget_and_is_kept_with_the_run(tmp_path):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text("stages: [3, 6]\ntokens: [120, 50]\n")
    options = ("--model", "deit_t", "--methods", "topk,tome,lotm", *SMALL[:-1], "--schedule", file)
    code, text = run("compare", *options, "--out", out)
    assert code == 1, text  # ToMe and LoTM cannot remove more than half
    assert "tome can reduce 120 tokens to between 60 and 120, not to 50 as at layer 6." in text
    rows = {row["method"]: row for row in csv.DictReader((out / "leaderboard.csv").read_text().splitlines())}
    assert set(rows) == {"baseline", "topk", "tome", "lotm", "random"}
    assert rows["tome"]["status"] == rows["lotm"]["status"] == "unreachable"
    for name in ("topk", "random"):
        columns = ("schedule", "stages", "tokens", "protocol", "budget", "status")
        assert [rows[name][column] for column in columns] == ["mine", "3 6", "120 50", "custom", "", "ok"]
    assert ", mine schedule" in text
    assert read_config(str(out / "config.yaml")).schedule == Schedule("mine", (3, 6), (120, 50))
    file.unlink()
    code, text = run("compare", "--config", out / "config.yaml", "--workers", "0", "--out", out)
    assert "was finished on" in text


@pytest.mark.slow
def test_flags_of_a_schedule_win_over_the_configuration(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: deit_t\nbudgets: [0.2, 0.4]\nmethods: [topk]\nschedule: decreasing\n")
    assert read_config(str(file)).schedule == Schedule("decreasing", shape="decreasing")
    flags = (*SMALL, "--tokens", "150 115 89", "--out", tmp_path / "out")
    code, text = run("compare", "--config", file, *flags)
    assert code == 0, text
    chosen = json.loads((tmp_path / "out" / "run.json").read_text())["configuration"]
    assert (chosen["budgets"], chosen["schedule"]["tokens"]) == ([], [150, 115, 89])
    assert chosen["schedule"]["name"] == "explicit"


PLUGIN = '''
import torch, tokred

@tokred.register("first")
class First(tokred.Reducer):
    """Keep the first tokens."""

    def forward(self, view):
        return tokred.Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)
'''


@pytest.mark.slow
def test_a_run_with_a_plugin_is_the_same_run_from_its_configuration(tmp_path, request):
    request.addfinalizer(lambda: registry._classes.pop("first", None))
    path, out = tmp_path / "mine.py", tmp_path / "out"
    path.write_text(PLUGIN)
    code, text = run("compare", "-m", "deit_t", "--plugin", path, "--methods", "first", *SMALL, "--out", out)
    assert code == 0, text
    del registry._classes["first"], sys.modules[plugins.module_name(str(path))]
    again = ("compare", "--config", out / "config.yaml", "--workers", "0", "--out", out)
    code, text = run(*again)
    assert (code, "was finished on" in text) == (0, True), text
    del registry._classes["first"], sys.modules[plugins.module_name(str(path))]
    code, text = run(*again[:-1], tmp_path / "other", "--methods", "first,lotm")
    assert code == 0, text
    path.unlink()
    del sys.modules[plugins.module_name(str(path))]
    code, text = run(*again)
    assert code == 2
    assert "There is no Python file" in text
    assert "config.yaml" in text


def test_configs_lists_them():
    code, text = run("configs", "--format", "csv")
    assert code == 0
    assert [line.partition(",")[0] for line in text.splitlines()[1:]] == configs.names("compare")


def test_bad_configurations_end_with_one_sentence(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: deit_t\nlimit: 0\n")
    code, text = run("compare", "--config", tmp_path / "mine.yaml")
    assert code == 2
    assert "In mine.yaml, line 2: limit is the number of images to evaluate" in text
