"""The images, models and predictions of one sheet, and what is written about them."""

from __future__ import annotations

from dataclasses import dataclass

from tokred.tables.row import Row
from tokred.utils.text import visible
from tokred.visualize.trace import Map, Traced

_ARROW = " → "
Texts = tuple[str, ...]  # versions of one text, the longest first; the first that fits is written


@dataclass(frozen=True)
class Verdict:
    """What a model predicts for an image.

    Attributes:
        name: name of the predicted class.
        share: probability of that class.
        before: name of the class that the dense model predicts.
        share_before: its probability in the dense model.
        changed: whether the two classes differ.
        right: whether the prediction is the image's label; None where the label is unknown.
    """

    name: str
    share: float
    before: str
    share_before: float
    changed: bool
    right: bool | None

    @property
    def mark(self) -> str:
        """A tick or a cross behind the name, where the label is known."""
        return {None: "", True: " ✓", False: " ✗"}[self.right]

    @property
    def prediction(self) -> Texts:
        """The dense and the new class where they differ, else the class; the mark is always at the end."""
        after = (f"{self.name}{self.mark}", f"{short(self.name)}{self.mark}")
        if not self.changed:
            return after
        pairs = ((self.before, after[0]), (short(self.before), after[1]), ("", after[1]))
        return tuple(f"{before}{_ARROW}{name}".lstrip() for before, name in pairs)

    @property
    def confidence(self) -> str:
        """The probabilities that the dense and the reduced model give to their predictions."""
        return f"{per_cent(self.share_before)}{_ARROW}{per_cent(self.share)} %"


@dataclass
class Panels:
    """Images as some models see them.

    Attributes:
        traced: the images and where their tokens go.
        rows: leaderboard rows of all methods, those that failed included, by name.
        gflops: cost of the dense model.
        names: class names, where they are known.
        captions: one for each image.
        title: what was shown to which model.
        subtitle: which weights.
        layers: layers after which to draw; empty for the last stage alone.
        size: longer side of a picture in pixels; None for what suits the images.
    """

    traced: Traced
    rows: dict[str, Row]
    gflops: float
    names: tuple[str, ...] | None
    captions: list[str]
    title: str
    subtitle: str
    layers: tuple[int, ...] = ()
    size: int | None = None

    @property
    def refused(self) -> dict[str, str]:
        """Methods that are not shown, with the reason."""
        return {name: row.error for name, row in self.rows.items() if name not in self.traced.maps}

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts of all reduced models on all images."""
        images = range(len(self.captions))
        return [v for name in self.traced.maps for image in images if (v := self.verdict(name, image))]

    def verdict(self, name: str | None, image: int) -> Verdict | None:
        """What a model (None: the dense one) predicts for an image; None if it has no classifier."""
        before = self.traced.dense.probabilities[image]
        after = before if name is None else self.traced.maps[name].probabilities[image]
        if not (len(before) and len(after)):
            return None
        new, old, truth = int(after.argmax()), int(before.argmax()), int(self.traced.truth[image])
        return Verdict(
            name=self.class_name(new),
            share=float(after[new]),
            before=self.class_name(old),
            share_before=float(before[old]),
            changed=new != old,
            right=None if truth < 0 else new == truth,
        )

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where names are unknown."""
        return visible(self.names[index]) if self.names else str(index)

    def header(self, name: str) -> tuple[Texts, Texts]:
        """The two lines above a method's pictures: its name, and what it saves."""
        row = self.rows[name]
        saved = "" if row.reduction is None else f"{100 * row.reduction:.2f} % saved"
        cost = "" if row.gflops is None else f"{row.gflops:.2f} G"
        method, tag = visible(row.method), " (soft)" if self.traced.maps[name].soft else ""
        tag = " (random parameters)" if row.unfitted else tag
        return (method + tag, method), (" · ".join(filter(None, (saved, cost))), saved or cost)

    def image_caption(self, image: int) -> Texts:
        """The image's name, with its label or, without one, the kind of its file."""
        traced, caption = self.traced, self.captions[image]
        truth, kind = int(traced.truth[image]), traced.kinds.get(int(traced.index[image]), "")
        if truth < 0:
            return (f"{caption}: {visible(kind)}" if kind else caption,)
        label = self.class_name(truth)
        known = (f"label {label}", f"label {short(label)}", short(label))
        return tuple(f"{caption}: {text}" for text in known)

    @property
    def notes(self) -> list[str]:
        """Sentences at the end of a sheet."""
        first = "the prediction, and the confidence of the dense and the reduced model in their predictions."
        notes, about = [f"Under each picture: tokens after each stage, {first}"], {}
        soft = dict.fromkeys(self.rows[name].method for name, m in self.traced.maps.items() if m.soft)
        if soft:
            drawn = "tokens are mixtures; a patch is drawn with the token that has its largest share."
            notes.append(f"Soft ({', '.join(soft)}): {drawn}")
        for row in (self.rows[name] for name in self.traced.maps):
            layers = f" at layers {_layers(row.stages)}" if row.stages else ""
            about[row.method] = f"{row.method}{layers}" + (f", {row.options}" if row.options else "")
        refused = (f"Not shown: {name}: {why}" for name, why in self.refused.items())
        return [visible(note) for note in (*notes, *about.values(), *refused)]


def token_counts(tokens: Map) -> Texts:
    """The numbers of tokens after each stage, in full and shorter."""
    counts, stages = tokens.tokens, len(tokens.layers)
    if not stages:
        return (f"{counts[0]} tokens, nothing reduced", f"{counts[0]} tokens")
    ends = f"{counts[0]}{_ARROW}{counts[-1]}"
    brief = (f"{ends} in {stages} stages", ends)
    return (_ARROW.join(map(str, counts)), *brief) if stages <= 6 else brief


def per_cent(share: float) -> str:
    """A probability in per cent, at most 99.9: rounding must not claim certainty."""
    return f"{min(99.9, 100 * share):.1f}"


def short(name: str) -> str:
    """The first of a class's names, where it has several, as ImageNet's classes do."""
    return name.partition(", ")[0]


def _layers(stages: str) -> str:
    """Layers as a row has them; a long run of them as its ends."""
    layers = [int(layer) for layer in stages.split()]
    consecutive = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 3 and consecutive else stages
