"""Sheets, the command `show` and `tokred.show`, on a tiny model."""

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers.command import run
from helpers.pictures import an_image
from PIL import Image
from rich.console import Console

import tokred
from tokred.errors import TokredError
from tokred.models import zoo
from tokred.tables.row import Row
from tokred.testing import tiny_vit
from tokred.visualize import canvas, overlay, sheet, terminal, trace
from tokred.visualize.trace import Map

pytestmark = pytest.mark.usefixtures("shared_costs")


@pytest.fixture
def tiny(monkeypatch, request):
    """Every model is a tiny one, with weights for PhotoDigits."""
    model = tiny_vit(**getattr(request, "param", {}))
    loaded = zoo.Loaded(model, "tiny", "random ones", "0" * 64)
    monkeypatch.setattr(zoo, "load_for", lambda *arguments, **options: loaded)
    return model


FEW = ("--methods", "lotm,tome,topk", "--stages", "2 3", "--device", "cpu")


def test_show_draws_and_tells(tiny, tmp_path):
    out = tmp_path / "some" / "page.png"
    code, text = run("show", *FEW, "--index", "5,2", "--out", out)
    assert code == 0, text
    with Image.open(out) as page:
        assert page.format == "PNG"
        # Two blocks of pictures five times as large as 48 pixels, the input and three methods side by side.
        assert page.width == 2 * canvas.MARGIN + 4 * 240 + 3 * canvas.GAP
        assert page.height > 2 * 240
    for word in ("test 5", "test 2", "lotm", "tome", "topk", "Confidence", str(out.name)):
        assert word in text
    assert text.index("test 5") < text.index("test 2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiny", [{"img_size": (40, 64)}, {"class_token": False, "global_pool": "avg"}], indirect=True
)
def test_odd_grids_and_models_without_cls(tiny, tmp_path):
    code, text = run("show", *FEW, "--index", "0", "--out", tmp_path / "page.png", "--show-stages", "all")
    assert (tmp_path / "page.png").exists(), text
    if tiny.cls_token is None:
        assert code == 1
        assert "topk: topk needs a CLS token" in text
        assert "tome" in text
    else:
        assert code == 0
        with Image.open(tmp_path / "page.png") as page:
            assert page.width == 2 * canvas.MARGIN + 4 * 256 + 3 * canvas.GAP


def test_the_default_is_the_first_images_and_a_file_under_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = run(
        "show", "--methods", "topk", "--stages", "2 3", "--model", "deit_t", "--budgets", "0.1,0.2"
    )
    assert code == 0, text
    assert all(name in text for name in ("test 0", "test 1", "test 2", "topk@0.1", "topk@0.2"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [
        "show-deit_t-photodigits-0-1-2-0.1-0.2.png"
    ]


def files(folder):
    """Images of all kinds."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (60, 50, 3)).astype(np.uint8)
    Image.fromarray(colour).save(folder / "plain.png")
    Image.fromarray(colour[..., 0]).save(folder / "grey.png")
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(np.dstack([colour, colour[..., 0]])).save(folder / "clear.png")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    return [folder / f"{name}.png" for name in ("plain", "grey", "palette", "clear", "deep")]


@pytest.mark.slow
def test_own_images_of_all_kinds(tiny, tmp_path):
    found = files(tmp_path)
    code, text = run("show", *FEW, *found, "--out", tmp_path / "page.png")
    assert code == 0, text
    assert all(path.name in text for path in found)
    shown = tokred.show(found, ["topk"], stages=(2, 3))
    assert shown.traced.kinds == {1: "greyscale", 2: "palette", 3: "transparency ignored", 4: "16-bit"}
    assert (shown.traced.truth < 0).all()
    assert shown.verdict("topk", 0).mark == ""
    np.testing.assert_array_equal(
        shown.traced.images[1], np.repeat(shown.traced.images[1][..., :1], 3, axis=-1)
    )


def bad(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "a file").write_text("")
    Image.fromarray(an_image(9, 9)).save(tmp_path / "fine.png")
    return {
        "broken": ((tmp_path / "broken.png",), "cannot be read"),
        "missing": (("nowhere.png",), "There is no image at nowhere.png"),
        "folder": ((tmp_path,), "is a folder; give image files"),
        "both": ((tmp_path / "fine.png", "--index", "1"), "Give only one of image files"),
        "too far": (("--index", "1000"), "has images 0 to 999; got --index 1000"),
        "negative": (("--index", "-1"), "has images 0 to 999"),
        "no number": (("--index", "x"), "--index takes indices of images"),
        "none": (("--index", ""), "at least one image"),
        "disagree": (("--disagree", "0"), "must be at least 1"),
        "method": (("--method", "tomee"), "Did you mean"),
        "option": (("--set", "topk.what=1"), "option"),
        "size": (("--size", "5"), "from 32 to 2048"),
        "stages": (("--show-stages", "first"), "--show-stages takes last, all, or layers"),
        "layers": (("--show-stages", "3 99"), "layers from 1 to 4"),
        "budget": (("--budget", "a"), "got 'a'"),
        "huge page": (("--index", "0 1 2 3 4 5 6 7 8 9", "--size", "2048"), "show fewer images"),
        "no picture": (("--out", tmp_path / "page.gif"), "--out takes the name of a picture, .png"),
        "no folder": (("--out", tmp_path / "a file" / "page.png"), "and the results need a folder"),
    }


CASES = (
    "broken,missing,folder,both,too far,negative,no number,none,disagree,"
    "method,option,size,stages,layers,budget,huge page,no picture,no folder"
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.split(","))
def test_bad_input_is_one_sentence(case, tiny, tmp_path):
    arguments, expected = bad(tmp_path)[case]
    code, text = run(
        "show", "--stages", "2 3", *([] if case == "method" else ["--methods", "topk"]), *arguments
    )
    assert code == 2, text
    assert expected in text
    assert "Traceback" not in text
    assert text.count("\n") == 1


@pytest.mark.slow
def test_a_method_that_cannot_does_not_keep_the_others_from_being_shown(tiny, tmp_path):
    code, text = run(
        "show",
        "--stages",
        "2 3",
        "--methods",
        "patchmerger,topk",
        "--index",
        "0",
        "--out",
        tmp_path / "page.png",
    )
    assert code == 0  # that nobody has fitted it is no failure
    assert "patchmerger: not fitted: run `tokred fit patchmerger" in text
    code, text = run(
        "show", "--methods", "topk,tome", "--stages", "3", "--index", "0", "--out", tmp_path / "page.png"
    )
    assert code == 1  # it halves tokens at most, which at this layer is not enough
    assert "tome: tome" in text
    assert "topk" in text
    allowed = tokred.show(index=[0], methods=["patchmerger", "topk"], stages=(2, 3), allow_unfitted=True)
    assert "random parameters" in allowed.header("patchmerger")[0][0]
    assert any(note.startswith("Soft (patchmerger)") for note in allowed.notes)


def test_what_changes_is_marked(tiny):
    shown = tokred.show(index=[0, 1], methods=["topk"], stages=(2, 3))
    probabilities = np.zeros((2, 10), dtype=np.float32)
    truth = shown.traced.truth
    dense = probabilities.copy()
    dense[[0, 1], truth] = 0.75  # the unreduced model is right
    after = probabilities.copy()
    after[0, truth[0]], after[1, (truth[1] + 1) % 10] = 0.5, 1.0
    traced = shown.traced
    object.__setattr__(traced.dense, "probabilities", dense)
    object.__setattr__(traced.maps["topk"], "probabilities", after)
    right, wrong, same = str(truth[1]), str((truth[1] + 1) % 10), str(truth[0])
    assert shown.verdict("topk", 0).prediction[0] == f"{same} ✓"
    assert shown.verdict("topk", 1).prediction[0] == f"{right} → {wrong} ✗"
    assert shown.verdict("topk", 1).confidence == "75.0 → 99.9 %"
    assert [sheet._cell(shown, "topk", image, 5.0, None).alert for image in (0, 1)] == [False, True]
    assert "the prediction changes" in [meaning for _, meaning in sheet._legend(shown)]
    edge = np.asarray(shown.picture)[:, canvas.MARGIN + 240 + canvas.GAP - 3]  # left of the method's pictures
    framed = np.flatnonzero((edge[120:] == (0xD5, 0x5E, 0x00)).all(axis=1))
    assert 240 <= len(framed) <= 250  # one picture, the second one
    assert framed[0] > 240
    assert shown.frame.changed.tolist() == [False, True]
    assert shown.frame.right.tolist() == [True, False]
    console = Console(width=150, file=io.StringIO())
    console.print(terminal.table(shown).render())
    table = console.file.getvalue()
    assert f"{right} → {wrong} ✗" in table
    assert "75.0 → 99.9 %" in table
    assert table.count("yes") == 1


def place(page, picture, x):
    """Where a picture stands on a page at that x, pixel by pixel."""
    column = np.asarray(page)[:, x : x + picture.width]
    wanted = np.asarray(picture)
    tops = range(len(column) - len(wanted) + 1)
    return [
        y for y in tops if (column[y] == wanted[0]).all() and (column[y : y + len(wanted)] == wanted).all()
    ]


@pytest.mark.parametrize("methods", [["topk"], ["lotm", "tome", "topk"] * 4])
def test_pictures_are_on_the_sheet_pixel_by_pixel_and_nothing_is_cut(tiny, methods):
    shown = tokred.show(index=[0, 1], methods=methods[:3], stages=(2, 3), size=96)
    maps = {f"{name} {k}": shown.traced.maps[name] for k, name in enumerate(methods)}
    rows = {f"{name} {k}": shown.rows[name] for k, name in enumerate(methods)}
    object.__setattr__(shown.traced, "maps", maps)
    shown.rows = rows
    page = sheet.render(shown)
    for image in (0, 1):
        for column, name in enumerate(maps):
            labels = maps[name].labels[image, -1]
            picture = overlay.cell(shown.traced.images[image], labels, shown.traced.grid, 2.0)
            tops = place(page, picture, canvas.MARGIN + (1 + column) * (96 + canvas.GAP))
            assert len(tops) == 1
    pixels = np.asarray(page)
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 255).all()


def test_a_dense_control_is_its_image_alone(tiny):
    shown = tokred.show(index=[0], methods=["topk"], stages=(2, 3), layers="all")
    shown.traced.maps["lowres"] = Map(
        (), (25,), np.zeros((1, 0, 25), dtype=int), shown.traced.dense.probabilities
    )
    shown.rows["lowres"] = Row("lowres", gflops=0.7, reduction=0.3)
    image = overlay.cell(shown.traced.images[0], None, shown.traced.grid, 5.0)
    places = [place(shown.picture, image, canvas.MARGIN + column * (240 + canvas.GAP)) for column in range(3)]
    assert [len(tops) for tops in places] == [1, 0, 2]  # the input, topk, and lowres after each of two layers
    assert shown.header("lowres")[1][0] == "30.00 % saved · 0.70 G"
    assert shown.picture.width == 2 * canvas.MARGIN + 3 * 240 + 2 * canvas.GAP
    assert len(list(terminal.pictures(shown, 200))) == 1


def test_every_layer_has_a_row_and_predictions_stand_under_the_last(tiny):
    shown = tokred.show(index=[0], methods=["topk", "lotm"], stages=(2, 3), layers="all")
    assert shown.layers == (2, 3)
    tokens = shown.traced.maps["topk"].tokens
    first, last = (sheet._cell(shown, "topk", 0, 5.0, layer) for layer in (2, 3))
    assert [line.versions[0] for line in first.lines] == [f"layer 2: {tokens[1]} tokens"]
    assert last.lines[0].versions[0] == f"layer 3: {tokens[2]} tokens"
    assert len(last.lines) == 3
    assert first.picture.size == (240, 240)


def test_disagreeing_images_are_those_that_choose_names(tiny, monkeypatch):
    asked = []
    choose = trace.choose
    monkeypatch.setattr(
        trace, "choose", lambda found, count: asked.append((found, count)) or choose(found, count)
    )
    shown = tokred.show(disagree=2, limit=6, methods=["topk", "lotm"], stages=(2, 3))
    ((found, count),) = asked
    assert count == 2
    assert found.done.tolist() == [True] * 6
    assert shown.traced.index.tolist() == choose(found, 2).tolist()


def test_previews_fit_the_terminal(tiny):
    shown = tokred.show(index=[0], methods=["topk", "lotm", "tome"], stages=(2, 3))
    for width in (20, 80):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        for part in terminal.pictures(shown, width):
            console.print(part)
        plain = Console(width=width, file=io.StringIO(), color_system=None)
        for part in terminal.pictures(shown, width):
            plain.print(part)
        lines = plain.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert all(name in plain.file.getvalue() for name in ("test 0", "topk", "lotm", "tome"))
        assert "38;2;" in console.file.getvalue()


def test_hostile_names_do_no_harm(tiny, tmp_path):
    path = tmp_path / "[red]\x1b[31m<td>.png"
    Image.fromarray(an_image(50, 50)).save(path)
    code, text = run("show", *FEW, path, "--out", tmp_path / "page.png")
    assert code == 0
    assert "\x1b[31m" not in text
    assert r"\x1b[31m" in text


@pytest.mark.slow
def test_notebooks_and_files_get_the_same_picture(tiny, tmp_path):
    shown = tokred.show([Image.fromarray(an_image(50, 50))], ["topk"], stages=(2, 3))
    shown.save(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes() == shown._repr_png_()
    again = tokred.show([Image.fromarray(an_image(50, 50))], ["topk"], stages=(2, 3))
    for suffix in (".png", ".webp", ".jpg"):
        assert again._encoded(suffix) == shown._encoded(suffix)
    assert shown.captions == ["image 0"]
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(TokredError, match="Cannot write"):
        shown.save(tmp_path / "taken.png")


def test_help_needs_no_heavy_library():
    code = (
        "import sys, tokred.cli; print(sorted({'torch', 'matplotlib', 'PIL', 'pandas'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
