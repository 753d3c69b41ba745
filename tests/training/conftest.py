"""A folder of pictures that the tests of fitting share."""

import pytest
from helpers.pictures import draw


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder / "train", 40, 0)
    draw(folder / "validation", 16, 1)
    return str(folder)
