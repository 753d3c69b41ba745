"""Timing and the bench command. No test here depends on how long anything takes."""

import csv
from math import comb

import numpy as np
import pytest
import torch
from helpers.methods import FIXED
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokred.cli import app
from tokred.core import registry
from tokred.core.flops import count
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation import timing
from tokred.evaluation.bench import Bench, record, table, to_csv
from tokred.evaluation.config import Config
from tokred.evaluation.speed import measure
from tokred.testing import tiny_plan, tiny_vit

CPU = torch.device("cpu")


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40, unique=True))
def test_the_interval_holds_the_median_of_the_population_at_95_percent(values):
    found, ordered, n = timing.median_interval(np.array(values)), sorted(values), len(values)
    assert found.median == pytest.approx(np.median(values))

    def missed(k):  # probability that a median lies outside the k-th smallest and k-th largest of n
        return 2 * sum(comb(n, i) for i in range(k)) / 2**n

    k = ordered.index(found.low) + 1
    assert ordered[-k] == found.high
    if n >= 6:
        assert missed(k) <= 0.05 < missed(k + 1)
    else:
        assert k == 1


def test_runs_take_turns_in_an_order_that_changes(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def run(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    runs = {name: run(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    ticks = []
    taken = timing.interleave(runs, 8, CPU, progress=ticks.append)
    assert {name: seconds.tolist() for name, seconds in taken.items()} == {
        "a": [1.0] * 8,
        "b": [2.0] * 8,
        "c": [4.0] * 8,
    }
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 1
    assert ticks == [1] * 8


def test_short_runs_are_called_until_a_measurement_lasts(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call():
        calls.append(1)
        now[0] += 0.25

    assert timing.interleave({"a": call}, 2, CPU, least=1.0)["a"].tolist() == [0.25, 0.25]
    assert len(calls) == 1 + 2 * 4  # one to see how short it is


def test_peak_memory_counts_what_is_alive_together():
    def run():
        a = torch.ones(1000)  # 4000 bytes
        b = a.neg()  # with it 8000
        del a
        c = torch.ones(500)  # 6000
        return b.sum() + c.sum()

    assert timing.peak_bytes(run, CPU) == 8000
    assert timing.peak_bytes(lambda: None, CPU) == 0
    assert timing.weight_bytes(torch.nn.Linear(3, 5)) == 4 * (15 + 5)


def test_figures_agree_with_each_other_and_with_the_count():
    model = tiny_vit()
    reduced = ReducedViT(model, Plan("topk", (2, 3), (24, 12)))
    saved = {"topk": 1 - count(reduced).total / count(ReducedViT(model)).total}
    speeds = measure({"topk": reduced}, model, 2, saved, rounds=3)
    assert list(speeds) == ["baseline", "topk"]
    speed = speeds["topk"]
    assert speed.promise == pytest.approx(count(ReducedViT(model)).total / count(reduced).total)
    assert speed.promise_share == pytest.approx(speed.speedup / speed.promise)
    assert speed.speedup_lo <= speed.speedup <= speed.speedup_hi
    assert speed.latency_q1_ms <= speed.latency_ms <= speed.latency_q3_ms
    assert speed.images_per_s == pytest.approx(2e3 / speed.latency_ms)
    assert speeds["baseline"].speedup == speeds["baseline"].promise == 1
    again = measure({"topk": reduced}, model, 2, saved, rounds=1)["topk"]
    assert timing.weight_bytes(model) / 1e6 < speed.peak_mem_mb == again.peak_mem_mb


def test_a_model_that_fails_does_not_take_the_others_along(monkeypatch):
    model = tiny_vit()
    models = {name: ReducedViT(model, Plan(name, (2,), (24,))) for name in ("random", "topk")}
    monkeypatch.setattr(models["random"], "forward", lambda images: 1 / 0)
    failed, saved = {}, {"topk": 0.3}
    assert list(measure(models, model, 1, saved, rounds=1, failed=failed)) == ["baseline", "topk"]
    assert failed == {"random": "division by zero"}
    with pytest.raises(ZeroDivisionError):
        measure(models, model, 1, saved, rounds=1)


@pytest.mark.slow
def test_compiled_models_are_timed_too(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: real(model, backend="eager", fullgraph=True, **options)
    )
    model = tiny_vit(depth=1)
    counts = range(20, 29)  # more models than dynamo's limit of 8 for one function
    models = {f"lotm{keep}": ReducedViT(model, Plan("lotm", (1,), (keep,))) for keep in counts}
    torch._dynamo.reset()
    saved = dict.fromkeys(models, 0.3)
    assert set(measure(models, model, 1, saved, rounds=1, compiled=True)) == {"baseline", *models}


@pytest.mark.slow
def test_the_command_writes_a_row_for_each_method_and_batch_size(tmp_path):
    out = tmp_path / "new" / "speed.csv"
    arguments = [
        "bench",
        "--model",
        "deit_t",
        "--methods",
        "lotm,sit",
        "--batch-size",
        "1,2",
        "--rounds",
        "1",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.open()))
    assert [(row["batch_size"], row["method"]) for row in rows] == [
        (b, m) for b in "12" for m in ("baseline", "lotm", "sit")
    ]
    assert all(float(row["latency_ms"]) > 0 and float(row["peak_mem_mb"]) > 20 for row in rows)
    assert {row["unfitted"] for row in rows} == {"False"}  # sit's parameters are shipped
    assert [path.name for path in out.parent.iterdir()] == ["speed.csv"]
    lotm = rows[1]
    assert float(lotm["promise"]) == pytest.approx(1 / (1 - float(lotm["reduction"])))
    assert float(lotm["promise_share"]) == pytest.approx(float(lotm["speedup"]) / float(lotm["promise"]))


@pytest.mark.slow
def test_learned_methods_without_an_adapter_are_marked(tmp_path):
    rows = Bench(
        Config("deit_t", (0.3,), ("sit", "topk"), stages=(3, 6), controls=False), (1,), rounds=1
    ).run()
    assert {row["method"]: row["unfitted"] for row in rows} == {"baseline": False, "sit": True, "topk": False}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "one"], "--batch-size takes numbers of images, such as 1,16,128; got 'one'"),
        (["--batch-size", "4,0"], "from 1 to 65,536, such as 1,16,128; got 0"),
        (["--batch-size", "4,99999999999"], "from 1 to 65,536, such as 1,16,128; got 99999999999"),
        (["--rounds", "0"], "--rounds is the number of times each model is timed, from 1 to 100,000; got 0"),
        (["--rounds", "99999999999"], "from 1 to 100,000; got 99999999999"),
        (["--methods", "lotn"], "Did you mean: lotm"),
        (["--budget", "2"], "between 0 and 1"),
        (["--methods", "lotm", "--budget", "0.9"], "can save at most"),
        (["--model", "deit_q"], "Did you mean"),
        (["--out", "/proc/none/speed.csv"], "The output folder /proc/none cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words):
    result = CliRunner().invoke(app, ["bench", "--model", "deit_t", *arguments])
    assert isinstance(result.exception, TokredError)
    assert words in str(result.exception)


@pytest.mark.slow
def test_an_unreachable_method_has_a_row_with_the_reason(tmp_path):
    out = tmp_path / "speed.csv"
    arguments = ["bench", "--model", "deit_t", "--methods", "lotm,topk", "--budget", "0.5", "--rounds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--batch-size", "1", "--stages", "6", "--out", str(out)])
    assert result.exit_code == 1
    rows = {row["method"]: row for row in csv.DictReader(out.open())}
    assert "can save at most" in rows["lotm"]["error"]
    assert float(rows["topk"]["speedup"]) > 0


def test_the_table_shows_failures():
    rows = [record("topk", "deit_t", 1, error="out of [memory]")]
    assert table(rows, "title").row_notes == {0: ["out of [memory]"]}
    assert "out of [memory]" in to_csv(rows)


def test_the_table_fits_into_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    times = {"images_per_s": 1234.5, "latency_ms": 1234.5}
    ratio = {"speedup": 1.234, "speedup_lo": 1.2, "speedup_hi": 1.3, "promise_share": 0.95}
    row = record("patchmerger", "deit_t", 256, **times, **ratio, peak_mem_mb=12345.6)
    text = str(table([row], "title"))
    assert "patchmerger    256    1234.5   1234.5  1.234 [1.200, 1.300]       95.0%  12345.6" in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", [name for name in FIXED if not registry.get(name).host])
def test_no_reducer_waits_for_the_gpu(method):
    cls, model = registry.get(method), tiny_vit()
    reduced = ReducedViT(model, tiny_plan(cls, model)).cuda().eval()
    images = torch.randn(2, 3, 48, 48, device="cuda")
    with torch.inference_mode():
        reduced(images)  # libraries set themselves up on the first call
        torch.cuda.set_sync_debug_mode("error")
        try:
            reduced(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    model.cpu()  # it is shared between tests
