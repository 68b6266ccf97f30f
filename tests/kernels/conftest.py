"""Each test of a kernel runs once for each instruction set that the processor has."""

from collections.abc import Iterator

import pytest

from lightvllm.kernels.isa import available_isas, use_isa


@pytest.fixture(autouse=True, params=available_isas() or ["auto"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use."""
    use_isa(request.param)
    yield request.param
    use_isa("auto")
