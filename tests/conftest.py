"""Fixtures. Tests use small random models, never the network."""

import os
import socket

if "PYTEST_XDIST_WORKER" in os.environ:  # one core to each worker, and to the programs that it starts
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "140"  # tables as wide as in a pipe, wherever the tests run

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tokred", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("tokred")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _offline(request, monkeypatch):
    """A test that reaches for the network fails; marked `loopback`, it may talk to local programs."""

    connect = socket.socket.connect
    loopback = ("127.0.0.1", "::1", "localhost") if request.node.get_closest_marker("loopback") else ()

    def local_only(self, address):
        # Worker processes hand tensors over through Unix sockets.
        if self.family != socket.AF_UNIX and address[0] not in loopback:
            raise OSError("tests run without a network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing that earlier runs have counted is used."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def images():
    """Three random images for `tokred.testing.tiny_vit`."""
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def _parts():
    """What the cost tables of `shared_costs` have counted of backbones, by their geometry."""
    return {}


@pytest.fixture(scope="module")
def shared_costs(_parts):
    """Cost tables of alike backbones share the counts of their layers, as they share those of reducers.

    For whole runs, of which counting is the slowest part; not for tests of costs themselves.
    """
    from tokred.core.costs import CostTable  # here, because it imports timm, which not all tests need

    start = CostTable.__init__

    def shared(self, backbone):
        start(self, backbone)
        geometry = (repr(backbone), self._geometry, backbone.global_pool)
        self._differences = _parts.setdefault(geometry, self._differences)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CostTable, "__init__", shared)
        yield


@pytest.fixture(scope="module")
def plain_outputs():
    """Runs of a module leave a line in place of the page and the figures, which take seconds to draw."""
    from helpers import outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokred.report.outputs.files", outputs.plain)
        yield
