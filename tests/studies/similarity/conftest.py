"""A study that several files look at."""

import pytest
from helpers.similarity import blind, smooth, study

from tokred.studies.similarity import premise
from tokred.testing import tiny_vit


@pytest.fixture(scope="session")
def found_smooth():
    """The measurement of smooth images without positions, and its findings."""
    measurement = study(blind(tiny_vit(qkv_bias=False)), smooth()).run(0)
    return measurement, premise.findings(measurement)
