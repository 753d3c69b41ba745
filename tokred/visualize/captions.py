"""What a page of `show` says: headers of methods, tokens and predictions under each picture, the legend, and notes at the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from tokred.errors import TokredError
from tokred.utils.text import visible
from tokred.visualize.layout import ALERT, GAP, MARGIN, MOST_PIXELS, Block, Cell, Line, Page, font_size
from tokred.visualize.overlay import cell
from tokred.visualize.trace import Map

if TYPE_CHECKING:
    from tokred.visualize.gallery import Gallery, Verdict

_WIDTH = 1720  # pixels that a page should not exceed
_ARROW = " → "


def page(gallery: Gallery) -> tuple[Page, tuple[int, int]]:
    """A gallery's page, and the width and height of its pictures."""
    height, width = gallery.traced.images.shape[1:3]
    scale = _scale(height, width, gallery.size)
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    names = list(gallery.traced.maps)
    blocks = [_block(gallery, image, scale) for image in range(len(gallery.captions))]
    columns = [_header(gallery, name) for name in names]
    first = (
        Line(("input",), "bold"),
        Line((f"unreduced: {gallery.gflops:.2f} G", f"{gallery.gflops:.2f} G"), "muted"),
    )
    across = _across(len(names), side[0], len({gallery.rows[name].budget for name in names}))
    return Page(
        gallery.title, gallery.subtitle, _legend(gallery), first, columns, blocks, _notes(gallery), across
    ), side


def check_extent(images: int, columns: int, rows: int, shape: tuple[int, int], size: int | None) -> None:
    """Refuse a page that no viewer opens, before anything is computed.

    Raises:
        TokredError: it would be too large.
    """
    scale = _scale(*shape, size)
    height, width = shape[0] * scale, shape[1] * scale
    across = _across(columns, round(width))
    text = 7 * font_size(round(width))
    total = images * rows * math.ceil(columns / max(1, across)) * (height + text)
    if (across + 1) * (width + GAP) * total > MOST_PIXELS or total > 60_000:
        raise TokredError(
            f"A page of {images} images with {columns} methods would be {total:.0f} pixels high; show fewer images or methods, "
            "or smaller pictures with --size."
        )


def token_counts(found: Map) -> tuple[str, ...]:
    """Tokens from stage to stage, in full and shorter."""
    if not found.layers:
        return (f"{found.tokens[0]} tokens, nothing reduced", f"{found.tokens[0]} tokens")
    ends = f"{found.tokens[0]}{_ARROW}{found.tokens[-1]}"
    brief = (f"{ends} in {len(found.layers)} stages", ends)
    return (_ARROW.join(map(str, found.tokens)), *brief) if len(found.layers) <= 6 else brief


def per_cent(share: float) -> str:
    """A probability, without claiming certainty."""
    return f"{min(99.9, 100 * share):.1f}"


def prediction(verdict: Verdict) -> tuple[str, ...]:
    """The class before and after where it changes, else the class; in full and shorter. The mark is always at the end."""
    after = [f"{name}{verdict.mark}" for name in (verdict.name, short(verdict.name))]
    if not verdict.changed:
        return tuple(after)
    pairs = ((verdict.before, after[0]), (short(verdict.before), after[1]), ("", after[1]))
    return tuple(f"{before}{_ARROW}{name}".lstrip() for before, name in pairs)


def short(name: str) -> str:
    """The first of a class's names, where it has several, as ImageNet's classes do."""
    return name.partition(", ")[0]


def confidence(verdict: Verdict) -> str:
    """Of the unreduced model in its class, and of this one in its own."""
    return f"{per_cent(verdict.share_before)}{_ARROW}{per_cent(verdict.share)} %"


def _block(gallery: Gallery, image: int, scale: float) -> Block:
    traced = gallery.traced
    picture, dense = traced.images[image], gallery.verdict(None, image)
    truth, kind = int(traced.truth[image]), traced.kinds.get(int(traced.index[image]), "")
    caption, label = gallery.captions[image], gallery.class_name(truth) if truth >= 0 else ""
    known = (
        [f"label {label}", f"label {short(label)}", short(label)]
        if label
        else [visible(kind)]
        if kind
        else []
    )
    lines = [Line(tuple(f"{caption}: {text}" for text in known) or (caption,), "bold", middle=True)]
    if dense:
        names = prediction(dense)
        lines += [Line((*(f"unreduced: {name}" for name in names), *names), middle=True)]
        lines += [Line((f"{per_cent(dense.share)} % sure",), "muted")]
    rows = []
    for layer in gallery.layers or (None,):
        last = layer is None or layer == gallery.layers[-1]
        rows.append([_cell(gallery, name, image, scale, layer, last) for name in traced.maps])
    return Block(Cell(cell(picture, None, traced.grid, scale), tuple(lines)), rows)


def _cell(gallery: Gallery, name: str, image: int, scale: float, layer: int | None, last: bool) -> Cell:
    traced, found = gallery.traced, gallery.traced.maps[name]
    tokens, labels = found.after(layer or found.layers[-1]) if found.layers else (found.tokens[0], None)
    lines = [
        Line(token_counts(found))
        if layer is None
        else Line((f"layer {layer}: {tokens} tokens", f"{layer}: {tokens} tokens"))
    ]
    verdict = gallery.verdict(name, image) if last else None
    if verdict:
        lines += [
            Line(prediction(verdict), "alert" if verdict.changed else "plain", middle=True),
            Line((f"{confidence(verdict)} sure", confidence(verdict)), "muted"),
        ]
    drawn = cell(traced.images[image], None if labels is None else labels[image], traced.grid, scale)
    return Cell(drawn, tuple(lines), bool(verdict and verdict.changed))


def _header(gallery: Gallery, name: str) -> tuple[Line, ...]:
    row = gallery.rows[name]
    saved = "" if row.reduction is None else f"{100 * row.reduction:.2f} % saved"
    cost = "" if row.gflops is None else f"{row.gflops:.2f} G"
    tag = " (random parameters)" if row.unfitted else " (soft)" if gallery.traced.maps[name].soft else ""
    return (
        Line((visible(row.method) + tag, visible(row.method)), "bold", middle=True),
        Line((" · ".join(filter(None, (saved, cost))), saved or cost), "muted"),
    )


def _legend(gallery: Gallery) -> list[tuple[Image.Image, str]]:
    maps = gallery.traced.maps.values()
    # Four patches of three colours: two of them are one group in the first swatch, one is dropped in the second.
    patches = np.repeat(
        np.repeat(
            np.array([[[150, 88, 60], [66, 96, 120]], [[150, 88, 60], [88, 120, 70]]], dtype=np.uint8), 9, 0
        ),
        9,
        1,
    )
    found = [
        (
            cell(patches, np.array([0, 1, 0, 2]), (2, 2)),
            "between lines: one token, in the mean colour of its patches",
        )
    ]
    if any((model.labels < 0).any() for model in maps):
        found.append((cell(patches, np.array([-1] * 4), (2, 2)), "grey and hatched: dropped"))
    if any(verdict and verdict.changed for verdict in _verdicts(gallery)):
        frame = Image.new("RGB", (18, 18), "white")
        ImageDraw.Draw(frame).rectangle((0, 0, 17, 17), outline=ALERT, width=3)
        found.append((frame, "the prediction changes"))
    return found


def _verdicts(gallery: Gallery) -> list[Verdict | None]:
    return [
        gallery.verdict(name, image) for name in gallery.traced.maps for image in range(len(gallery.captions))
    ]


def _notes(gallery: Gallery) -> list[str]:
    about, soft = {}, []
    for name in gallery.traced.maps:
        row = gallery.rows[name]
        if gallery.traced.maps[name].soft and row.method not in soft:
            soft.append(row.method)
        layers = f" at layers {_layers(row.stages)}" if row.stages else ""
        about[row.method] = f"{row.method}{layers}" + (f", {row.options}" if row.options else "")
    notes = [
        "Under each picture: tokens from stage to stage, the prediction, and the model's confidence in it, unreduced → reduced."
    ]
    if soft:
        notes.append(
            f"Soft ({', '.join(soft)}): tokens are mixed; every patch is drawn with the token that has the largest share of it."
        )
    return [
        visible(note)
        for note in (
            *notes,
            *about.values(),
            *(f"Not shown: {name}: {why}" for name, why in gallery.refused.items()),
        )
    ]


def _layers(stages: str) -> str:
    """Layers as a row has them; a long run of them as its ends."""
    layers = [int(layer) for layer in stages.split()]
    return (
        f"{layers[0]} to {layers[-1]}"
        if len(layers) > 3 and layers == list(range(layers[0], layers[-1] + 1))
        else stages
    )


def _scale(height: int, width: int, size: int | None) -> float:
    """Of pictures: by default as large as the images, but from 224 to 384 pixels, small ones a whole number of times as large."""
    longer = max(height, width)
    if size is not None:
        return size / longer
    return math.ceil(224 / longer) if longer < 224 else min(longer, 384) / longer


def _across(columns: int, width: int, budgets: int = 1) -> int:
    """Columns side by side: as many as fit, in rows of equal length, which do not part the budgets of a method where that can be."""
    most = max(1, (_WIDTH - 2 * MARGIN + GAP) // (width + GAP) - 1)
    if budgets > 1 and columns > most >= budgets:
        return most - most % budgets
    return math.ceil(columns / math.ceil(columns / most)) if columns else 1
