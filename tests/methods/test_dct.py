"""The DCT's matrix against scipy's transforms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct, idct

from tokred.methods.dct import DCT, low_pass
from tokred.testing import make_view


@given(st.integers(2, 40), st.sampled_from(["amplitude", "published"]), st.data())
def test_oracle(n, scale, data):
    keep = data.draw(st.integers(n - n // 2, n))
    view = make_view(n=n)
    pooled = DCT(n, keep, 48, 3, scale=scale)(view).pool(view.x)
    low = dct(view.x.double().numpy(), axis=1, norm="ortho")[:, :keep]
    want = idct(low, axis=1, norm="ortho") * (np.sqrt(keep / n) if scale == "amplitude" else 1)
    np.testing.assert_allclose(pooled.numpy(), want, atol=1e-5)


@pytest.mark.parametrize(("m", "n"), [(137, 196), (98, 196), (65, 195), (288, 576), (1, 2)])
def test_the_closed_form_is_the_product_of_the_transforms(m, n):
    want = idct(dct(np.eye(n), axis=0, norm="ortho")[:m], axis=0, norm="ortho") * np.sqrt(m / n)
    np.testing.assert_allclose(low_pass(m, n, torch.device("cpu")).numpy(), want, atol=1e-12)


def test_constant_sequences_and_slow_waves_keep_their_amplitude():
    place = (torch.arange(20) + 0.5) / 20
    x = torch.stack([torch.ones(20), torch.cos(3 * torch.pi * place)], dim=1).expand(3, -1, -1)
    pooled = DCT(20, 12, 48, 3)(make_view(n=20)).pool(x)
    fewer = (torch.arange(12) + 0.5) / 12
    want = torch.stack([torch.ones(12), torch.cos(3 * torch.pi * fewer)], dim=1).expand(3, -1, -1)
    torch.testing.assert_close(pooled, want, atol=1e-5, rtol=0)
    constant = DCT(20, 12, 48, 3, scale="published")(make_view(n=20)).pool(torch.ones(3, 20, 1))
    torch.testing.assert_close(constant, torch.full((3, 12, 1), (20 / 12) ** 0.5), atol=1e-5, rtol=0)


def test_sizes_are_shared_by_absolute_weights():
    view, weight = make_view(n=10), low_pass(7, 10, torch.device("cpu")).numpy()
    share = np.abs(weight) / np.abs(weight).sum(0)
    np.testing.assert_allclose(
        DCT(10, 7, 48, 3)(view).sizes(view.size).numpy(), view.size.numpy() @ share.T, atol=1e-5
    )
