"""The scale of the residual stream is a convention: the model computes the same, but distances change."""

import copy

import pytest
import torch
from torch import nn

from tokred.models.residual import scale_residual
from tokred.testing import tiny_vit


def streams(model, images):
    """What every LayerNorm reads, and the logits."""
    read = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return read, logits


@pytest.mark.parametrize("factor", [0.0625, 0.3, 8.0])
def test_every_reader_sees_the_multiplied_stream_and_the_logits_stay(images, factor):
    model = tiny_vit()
    scaled = copy.deepcopy(model)
    scale_residual(scaled, factor)
    for norm in (module for module in scaled.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps *= factor**2  # the only part that is not invariant
    before, logits = streams(model, images)
    after, same = streams(scaled, images)
    assert len(before) == len(after) == 2 * 4 + 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, factor * a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, logits, rtol=1e-4, atol=1e-4)


def test_a_power_of_two_survives_float16():
    model = tiny_vit().half().float()  # as read from a file
    scaled = copy.deepcopy(model)
    scale_residual(scaled, 0.125)
    stored = copy.deepcopy(scaled).half().float()
    scale_residual(stored, 8.0)
    for (name, a), b in zip(model.named_parameters(), stored.parameters(), strict=True):
        lost = (a - b).abs()
        assert lost.max() <= 8 * 2**-25, name  # half a step of the smallest float16 numbers
        assert (lost[a.abs() >= 8 * 2**-14] == 0).all(), name
