"""Overlays, text and panels of a sheet, against loops over pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.pictures import an_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokred.data import sources
from tokred.data import user_images as named
from tokred.models import zoo
from tokred.visualize import canvas, overlay, panels, sheet, show, terminal
from tokred.visualize.trace import Map

grids = st.tuples(st.integers(1, 4), st.integers(1, 5))


@given(grids, st.integers(2, 6), st.integers(0, 999))
def test_a_group_has_the_mean_colour_of_its_pixels(grid, patch, seed):
    rng = np.random.default_rng(seed)
    image = an_image(grid[0] * patch, grid[1] * patch, seed)
    labels = rng.integers(-1, 4, grid[0] * grid[1])
    drawn = np.asarray(overlay.cell(image, labels, grid, lines=False))
    members = {}
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            members.setdefault(labels[y // patch * grid[1] + x // patch], []).append((y, x))
    for label, places in members.items():
        if label >= 0:
            mean = sum(image[place].astype(float) for place in places) / len(places)
            for place in places:
                np.testing.assert_allclose(drawn[place], mean, atol=0.51)


@given(grids, st.integers(3, 6), st.integers(0, 999))
def test_lines_run_exactly_where_neighbours_differ(grid, patch, seed):
    rng = np.random.default_rng(seed)
    image = np.full((grid[0] * patch, grid[1] * patch, 3), 200, dtype=np.uint8)
    labels = rng.integers(0, 3, grid[0] * grid[1])
    drawn = np.asarray(overlay.cell(image, labels, grid))
    label = [
        [labels[y // patch * grid[1] + x // patch] for x in range(image.shape[1])]
        for y in range(image.shape[0])
    ]
    for y, row in enumerate(label):
        for x, here in enumerate(row):
            right = x + 1 < len(row) and row[x + 1] != here
            below = y + 1 < len(label) and label[y + 1][x] != here
            assert (drawn[y, x].tolist() != [200, 200, 200]) == (right or below), (y, x)


def test_lines_are_light_on_dark_colours_and_dark_on_light_ones():
    for value, brighter in ((20, True), (230, False)):
        drawn = np.asarray(overlay.cell(np.full((8, 8, 3), value, dtype=np.uint8), np.array([0, 1]), (1, 2)))
        assert (drawn[0, 3, 0] > value) == brighter
        assert drawn[0, 3, 0] != value


def test_dropped_patches_are_the_image_pale_and_grey_and_nothing_else_is():
    image = an_image(12, 12)
    drawn = np.asarray(overlay.cell(image, np.array([0, -1, -1, -1]), (2, 2), lines=False)).astype(int)
    for y in range(12):
        for x in range(12):
            if y < 6 and x < 6:
                assert len(set(drawn[y, x])) > 1  # the mean of random colours is no grey
                continue
            r, g, b = image[y, x].tolist()
            assert (
                drawn[y, x].tolist() == [round(245 - 0.2 * (255 - (0.299 * r + 0.587 * g + 0.114 * b)))] * 3
            )
    hatched = np.asarray(overlay.cell(image, np.full(4, -1), (2, 2))).astype(int)
    plain = np.asarray(overlay.cell(image, np.full(4, -1), (2, 2), lines=False)).astype(int)
    on_line = np.add.outer(np.arange(12), np.arange(12)) % 7 == 0
    assert (plain - hatched)[on_line].tolist() == [[24] * 3] * int(on_line.sum())
    assert (plain == hatched)[~on_line].all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.37, 3.0])
def test_scaled_pictures(scale):
    image = an_image(30, 48)
    labels = np.arange(15)
    drawn = np.asarray(overlay.cell(image, labels, (3, 5), scale, lines=False))
    assert drawn.shape == (round(30 * scale), round(48 * scale), 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 15
    assert overlay.cell(image, None, (3, 5), scale).size == (round(48 * scale), round(30 * scale))


def test_an_image_without_labels_stays_as_it_is():
    image = an_image(9, 7)
    np.testing.assert_array_equal(np.asarray(overlay.cell(image, None, (1, 1))), image)


def test_half_blocks_have_two_pixels_in_a_character():
    image = an_image(5, 4)
    text = terminal.half_blocks(Image.fromarray(image))
    lines = text.plain.split("\n")
    assert lines == ["▀" * 4] * 3
    first = text.spans[0].style
    assert first.color.triplet == tuple(image[0, 0])
    assert first.bgcolor.triplet == tuple(image[1, 0])
    assert text.spans[-1].style.bgcolor.triplet == tuple(image[4, 3])  # the last line stands for itself twice


def test_text_is_shortened_only_where_it_must_be():
    long = "variant-of-a-method-7"
    assert canvas.fitted((long, "short"), 500, 12) == long
    assert canvas.fitted((long * 9, "short"), 60, 12) == "short"
    cut = canvas.fitted((long,), 90, 12)
    start, end = cut.split("…")
    assert canvas.text_width(cut, 12) <= 90
    assert canvas.text_width(f"{start}{long[len(start)]}…{end}", 12) > 90
    assert long.startswith(start)
    assert end.endswith("-7")
    assert canvas.fitted(("abc",), 1, 12) == "…"


@given(st.text("ab cW", max_size=60), st.integers(640, 900))
def test_paragraphs_stay_on_the_sheet_and_lose_no_word(text, width):
    page = canvas.Canvas(width, (224, 224))
    page.paragraph(text, canvas.Line(()), 16)
    written = [line.get_text() for line in page.axes.texts]
    assert all(canvas.text_width(line, 16) <= width - 2 * canvas.MARGIN for line in written)
    assert " ".join(written).split() == text.split()


@pytest.mark.filterwarnings("error:Glyph")
def test_the_font_has_all_signs_that_sheets_use():
    import matplotlib.font_manager
    from matplotlib.ft2font import FT2Font

    path = matplotlib.font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    assert all(FT2Font(path).get_char_index(ord(sign)) for sign in "→✓✗…·é")


def a_map(layers, tokens, m=1, n=4, classes=3):
    return Map(layers, tokens, np.zeros((m, len(layers), n), dtype=int), np.eye(classes)[[0] * m])


def test_tokens_under_a_picture():
    assert panels.token_counts(a_map((4, 7), (196, 150, 110))) == (
        "196 → 150 → 110",
        "196 → 110 in 2 stages",
        "196 → 110",
    )
    assert (
        panels.token_counts(a_map(tuple(range(1, 13)), tuple(range(196, 183, -1))))[0]
        == "196 → 184 in 12 stages"
    )
    assert panels.token_counts(a_map((), (196,)))[0] == "196 tokens, not reduced"


def test_long_names_keep_what_matters():
    verdict = panels.Verdict("ice bear, polar bear", 0.5, "hamster, a rodent", 0.7, True, False)
    assert verdict.prediction == (
        "hamster, a rodent → ice bear, polar bear ✗",
        "hamster → ice bear ✗",
        "→ ice bear ✗",
    )
    same = panels.Verdict("ice bear, polar bear", 0.5, "ice bear, polar bear", 0.7, False, None)
    assert same.prediction == ("ice bear, polar bear", "ice bear")
    long = panels.Verdict("a class of a very long name", 0.5, "", 0.7, False, True).prediction
    assert canvas.fitted(long, 80, 12).endswith("✓")


def test_which_layers_are_drawn():
    few, other, many = (
        a_map((4, 7, 11), (4,) * 4),
        a_map((4, 7, 10), (4,) * 4),
        a_map(tuple(range(1, 13)), (4,) * 13),
    )
    assert show.shown_layers([few, many], "last") == ()
    assert show.shown_layers([few, other, many], "all") == (4, 7, 10, 11, 12)
    assert show.shown_layers([many], "all") == (3, 6, 9, 12)
    assert show.shown_layers([few], (9, 2, 9)) == (2, 9)
    assert show.shown_layers([a_map((), (4,))], "all") == ()


def test_columns_fill_rows_of_equal_length():
    assert [sheet.columns(k, 224) for k in (1, 3, 6, 7, 11, 12, 30)] == [1, 3, 6, 4, 6, 6, 6]
    assert sheet.columns(33, 224, budgets=3) == 6
    assert sheet.columns(20, 224, budgets=4) == 4
    assert sheet.columns(3, 384) == 3
    assert sheet.columns(0, 224) == 1
    assert sheet.columns(2, 4000) == 1


def test_names_of_classes():
    model = SimpleNamespace(num_classes=2)
    folders = SimpleNamespace(class_names=("n01440764", "n01443537"))
    own = zoo.Loaded(model, "x", "file.pth", "")
    assert named.class_names(folders, own) == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert named.class_names(SimpleNamespace(class_names=("cat", "n01443537")), own) == (
        "cat",
        "n01443537",
    )
    assert named.class_names(SimpleNamespace(class_names=("cat",)), own) is None
    assert named.class_names(None, own) is None
    pretrained = zoo.Loaded(zoo.build("deit_t"), "deit_t", "timm deit_tiny_patch16_224.fb_in1k", "")
    assert named.class_names(None, pretrained)[1] == "goldfish, Carassius auratus"
    digits = zoo.Loaded(SimpleNamespace(num_classes=10), "x", "", "")
    assert named.class_names(sources.open_source(), digits) == tuple("0123456789")
