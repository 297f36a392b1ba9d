"""One device for all of these tests."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def alone(one_device: None) -> None:
    pass
