"""ATC against scikit-learn's agglomerative clustering, as published, and the properties of a hierarchy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from tokred.methods.atc import ATC, agglomerate
from tokred.testing import make_view


@given(
    st.integers(2, 24),
    st.integers(0, 1000),
    st.sampled_from(["average", "complete", "single"]),
    st.data(),
)
def test_oracle(n, seed, linkage, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, seed=seed)
    decision = ATC(n, keep, 48, 3, linkage=linkage)(view)
    for b in range(3):
        keys = view.attention.k[b, :, 1:].mean(0).double().numpy()
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        clustering = AgglomerativeClustering(keep, metric="precomputed", linkage=linkage)
        found = clustering.fit(1 - unit @ unit.T).labels_
        names = list(dict.fromkeys(found))  # in the order of their first tokens
        assert decision.labels()[b].tolist() == [names.index(cluster) for cluster in found]
        size, x = view.size[b].double().numpy(), view.x[b].double().numpy()
        for slot, name in enumerate(names):
            want = size[found == name] @ x[found == name] / size[found == name].sum()
            np.testing.assert_allclose(decision.pool(view.x)[b, slot].numpy(), want, atol=1e-5)


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_fewer_clusters_are_unions_of_more(linkage):
    view = make_view(n=20)
    labels = [ATC(20, keep, 48, 3, linkage=linkage)(view).labels() for keep in range(1, 20)]
    for few, many in itertools.pairwise(labels):
        for b in range(3):
            pairs = {(fine, coarse) for fine, coarse in zip(many[b].tolist(), few[b].tolist(), strict=True)}
            assert len(pairs) == many[b].max() + 1  # each of the many lies in one of the few


def test_equal_tokens_and_values_that_are_no_numbers_still_give_the_clusters():
    for distance in (torch.zeros(2, 9, 9), torch.full((2, 9, 9), torch.nan)):
        assert (agglomerate(distance, 4, "average").amax(1) == 3).all()


def test_the_operator_is_one_that_compilers_know():
    torch.library.opcheck(agglomerate, (make_view(n=8).distance, 3, "average"))
