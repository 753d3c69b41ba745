"""ImageNet's names, and comparisons of a model with its classes."""

from timm.data import ImageNetInfo

from helpers.command import run
from tokred.data import preflight, sources

WNIDS = ImageNetInfo("imagenet-1k").label_names()


def val(number, suffix=".JPEG"):
    return f"ILSVRC2012_val_{number:08d}{suffix}"


def opened(path, classes=1000, own=True, split=None, **options):
    return preflight.align(sources.open_source(str(path), split, **options), classes, own=own)


def compare(weights, *arguments):
    small = (
        "--model",
        "deit_t",
        "--methods",
        "lotm",
        "--workers",
        "0",
        "--precision",
        "fp32",
        "--img-size",
        "96",
    )
    return run("compare", *small, "--weights", weights, *arguments)
