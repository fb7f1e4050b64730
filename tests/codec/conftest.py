"""Every test that asks for `codec` runs once with each implementation."""

import pytest

from tests.codec.implementations import Implementation, implementation


@pytest.fixture(scope="module", params=["python", "cython"])
def codec(request: pytest.FixtureRequest) -> Implementation:
    try:
        return implementation(request.param)
    except ImportError as error:
        pytest.skip(f"no compiled codec here: {error}")
