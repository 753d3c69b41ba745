"""Open a source of images: the embedded benchmark, a folder, or a data set that timm reads."""

from __future__ import annotations

from pathlib import Path

from tokred.data import class_map as class_maps
from tokred.data import folders, photodigits, timm_datasets
from tokred.data.source import Source
from tokred.errors import TokredError

PHOTODIGITS = "photodigits"


def is_photodigits(data: str | None) -> bool:
    """Whether the value of --data names the embedded benchmark, as none at all does."""
    return data is None or data == PHOTODIGITS


def open_source(
    data: str | None = None,
    split: str | None = None,
    *,
    labels: bool = True,
    class_map: str | None = None,
    devkit: str | None = None,
    data_dir: str | None = None,
) -> Source:
    """Open the images to evaluate on.

    Args:
        data: None for PhotoDigits; a folder with one folder for each class (or with such folders for each
            split), with ImageNet's validation files, or with images that have no labels; or a name that timm
            reads, such as "hfds/imagenet-1k".
        split: name of the split; by default "test" for PhotoDigits, "validation" elsewhere.
        labels: whether to use labels, where there are any.
        class_map: file that says which class each label is; see `class_map.load`.
        devkit: labels of ImageNet's validation files; see `imagenet.read_labels`.
        data_dir: folder of a data set that timm reads by name.

    Raises:
        TokredError: no such folder, split or data set, or no labels where there should be some.
    """
    if data is None or is_photodigits(data):
        _refuse(
            {"--no-labels": not labels, "--class-map": class_map, "--devkit": devkit, "--data-dir": data_dir},
            "PhotoDigits",
        )
        chosen = split or "test"
        if chosen not in photodigits.SPLIT_IMAGES:
            raise TokredError(
                f"PhotoDigits has the splits {' and '.join(photodigits.SPLIT_IMAGES)} for evaluation, not "
                f"{chosen!r}."
            )
        return _open_photodigits(chosen)
    if timm_datasets.is_name(data):
        _refuse({"--devkit": devkit}, data)
        source = timm_datasets.open_named(data, split, data_dir, labels)
    else:
        _refuse({"--data-dir": data_dir}, "a folder")
        source = folders.open_folder(data, split, labels, devkit)
    if class_map is not None:
        source = class_maps.apply(source, Path(class_map))
    return source if labels or not source.labelled else source.unlabelled()


def _refuse(options: dict[str, object], what: str) -> None:
    """Raise where an option is set that means nothing for these data."""
    name = next((name for name, value in options.items() if value), None)
    if name:
        raise TokredError(f"{name} does not apply to {what}; omit it, or choose other images with --data.")


def _open_photodigits(split: str) -> Source:
    images = photodigits.PhotoDigits(split)  # type: ignore[arg-type]
    digest, note = photodigits.SPLIT_HASHES[split], ""
    probe = photodigits.PhotoDigits(split, length=photodigits.PROBE_IMAGES)  # type: ignore[arg-type]
    if probe.pixel_hash() != photodigits.PROBE_HASHES[split]:
        digest = images.pixel_hash()
        note = (
            "The libraries here draw other pixels than the published benchmark has, "
            "so do not compare with published tables."
        )
    return Source(
        images=images,
        name=PHOTODIGITS,
        split=split,
        hash=digest,
        groups=images.groups(),
        classes=photodigits.NUM_CLASSES,
        title="PhotoDigits",
        about="the embedded benchmark",
        weights="shipped",
        crop_pct=1.0,  # images have the model's size
        note=note,
        class_names=tuple(map(str, range(photodigits.NUM_CLASSES))),
    )
