"""The images, models and predictions of a sheet, and their captions."""

from __future__ import annotations

from dataclasses import dataclass

from tokred.tables.row import Row
from tokred.utils.text import layer_range, visible
from tokred.visualize.trace import Map, Traced

_ARROW = " → "
Texts = tuple[str, ...]  # versions of one text, the longest first; the first that fits is used


@dataclass(frozen=True)
class Verdict:
    """The prediction of a model for an image.

    Attributes:
        name: name of the predicted class.
        share: probability of that class.
        before: name of the class predicted by the dense model.
        share_before: its probability in the dense model.
        changed: whether the two classes differ.
        right: whether the prediction is the image's label; None if the label is unknown.
    """

    name: str
    share: float
    before: str
    share_before: float
    changed: bool
    right: bool | None

    @property
    def mark(self) -> str:
        """A tick or a cross after the name; empty if the label is unknown."""
        return {None: "", True: " ✓", False: " ✗"}[self.right]

    @property
    def prediction(self) -> Texts:
        """The classes before and after if they differ, else the class, followed by the mark."""
        after = (f"{self.name}{self.mark}", f"{short(self.name)}{self.mark}")
        if not self.changed:
            return after
        pairs = ((self.before, after[0]), (short(self.before), after[1]), ("", after[1]))
        return tuple(f"{before}{_ARROW}{name}".lstrip() for before, name in pairs)

    @property
    def confidence(self) -> str:
        """The probabilities of the predictions of the dense and the reduced model."""
        return f"{per_cent(self.share_before)}{_ARROW}{per_cent(self.share)} %"


@dataclass
class Panels:
    """The content of a sheet: images with the tokens and predictions of some models.

    Attributes:
        traced: the images and their tokens.
        rows: leaderboard rows of all methods, including those that failed, by name.
        gflops: cost of the dense model.
        names: class names; None if unknown.
        captions: one caption for each image.
        title: the model, the data and the budgets.
        subtitle: the weights.
        layers: layers after which to draw; empty for the last stage alone.
        size: longer side of a picture in pixels; None for a default by the size of the images.
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
        """The prediction of a model (None: the dense one) for an image; None if it has no classifier."""
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
        """The name of a class, or its number if names are unknown."""
        return visible(self.names[index]) if self.names else str(index)

    def header(self, name: str) -> tuple[Texts, Texts]:
        """The two lines above the pictures of a method: its name, and its reduction and FLOPs."""
        row = self.rows[name]
        saved = "" if row.reduction is None else f"{100 * row.reduction:.2f} % saved"
        cost = "" if row.gflops is None else f"{row.gflops:.2f} G"
        method, tag = visible(row.method), " (soft)" if self.traced.maps[name].soft else ""
        tag = " (random parameters)" if row.unfitted else tag
        return (method + tag, method), (" · ".join(filter(None, (saved, cost))), saved or cost)

    def image_caption(self, image: int) -> Texts:
        """The name of an image with its label or, if that is unknown, the kind of its file."""
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
        shown = "tokens after each stage, the prediction, and the confidence of the dense and reduced model."
        notes, about = [f"Under each picture: {shown}"], {}
        soft = dict.fromkeys(self.rows[name].method for name, m in self.traced.maps.items() if m.soft)
        if soft:
            drawing = "tokens are mixtures; a patch is drawn with the token that has its largest share."
            notes.append(f"Soft ({', '.join(soft)}): {drawing}")
        for row in (self.rows[name] for name in self.traced.maps):
            layers = f" at layers {layer_range(row.stages)}" if row.stages else ""
            about[row.method] = f"{row.method}{layers}" + (f", {row.options}" if row.options else "")
        refused = (f"Not shown: {name}: {why}" for name, why in self.refused.items())
        return [visible(note) for note in (*notes, *about.values(), *refused)]


def token_counts(tokens: Map) -> Texts:
    """The numbers of tokens after each stage, in full and abridged."""
    counts, stages = tokens.tokens, len(tokens.layers)
    if not stages:
        return (f"{counts[0]} tokens, not reduced", f"{counts[0]} tokens")
    ends = f"{counts[0]}{_ARROW}{counts[-1]}"
    brief = (f"{ends} in {stages} stages", ends)
    return (_ARROW.join(map(str, counts)), *brief) if stages <= 6 else brief


def per_cent(share: float) -> str:
    """A probability in per cent, at most 99.9 so that rounding does not suggest certainty."""
    return f"{min(99.9, 100 * share):.1f}"


def short(name: str) -> str:
    """The first of several names of a class, as ImageNet's classes have."""
    return name.partition(", ")[0]
