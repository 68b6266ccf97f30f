"""The choice of an instruction set: what is in use is what was asked for, and kernels do follow it."""

from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

import pytest
import torch

from lightvllm import LLM, kernels
from lightvllm.config import EngineConfig
from lightvllm.kernels.isa import ISAS, available_isas, current_isa, use_isa
from lightvllm.layers.linear import PackedProduct
from lightvllm.quantization.product import QuantizedProduct
from tests.e2e.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")


@pytest.fixture(autouse=True)
def isa() -> Iterator[None]:
    """These tests choose for themselves."""
    yield
    use_isa("auto")


def test_the_config_has_the_same_names() -> None:
    assert set(get_args(get_type_hints(EngineConfig)["cpu_isa"])) == {"auto", *ISAS}


@pytest.mark.parametrize("name", available_isas())
def test_what_is_asked_for_is_used(name: str) -> None:
    use_isa(name)
    assert current_isa() == name
    use_isa("auto")
    assert current_isa() == available_isas()[-1]


def test_what_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightvllm.kernels.isa.available_isas", lambda: ("plain", "avx2"))
    with pytest.raises(
        ValueError, match="cpu_isa: this processor has no 'avx512', expected auto or one of plain, avx2"
    ):
        use_isa("avx512")


def test_without_kernels_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightvllm.kernels.isa.available_isas", lambda: ())
    use_isa("auto")
    with pytest.raises(ValueError, match="cpu_isa: 'plain' needs the compiled CPU kernels"):
        use_isa("plain")
    assert current_isa() == available_isas()[-1]


def results(x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one product on each instruction set."""
    product, found = PackedProduct(weight), {}
    for name in available_isas():
        use_isa(name)
        with torch.inference_mode():
            found[name] = product(x, None)
    return found


@pytest.mark.skipif("avx2" not in available_isas(), reason="the processor has one instruction set")
def test_kernels_follow_the_choice() -> None:
    """Fused multiplication and addition round once: AVX2 and AVX-512 have it, and agree to the bit."""
    torch.manual_seed(0)
    by_isa = results(torch.randn(9, 501), torch.randn(333, 501))
    assert not torch.equal(by_isa["plain"], by_isa["avx2"])
    for name in available_isas()[2:]:
        assert torch.equal(by_isa[name], by_isa["avx2"])


@pytest.mark.skipif("avx512vnni" not in available_isas(), reason="the processor has no products of bfloat16")
def test_products_of_bfloat16_follow_the_choice() -> None:
    """The processor's own take numbers as small as these for zeros."""
    by_isa = results(torch.full((3, 64), 1e-39).bfloat16(), torch.ones(64, 64).bfloat16())
    assert (by_isa["avx512"] > 0).all()
    assert (by_isa["avx512vnni"] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_sums_of_integers_are_the_same_on_all(bits: int) -> None:
    """With one group a result is an exact sum and two roundings."""
    torch.manual_seed(0)
    values, scales = torch.randint(0, 2**bits, (70, 333), dtype=torch.uint8), torch.rand(70, 1)
    x, product = torch.randn(7, 333), QuantizedProduct(values, scales, None, bits, 333)
    found = []
    for name in available_isas():
        use_isa(name)
        with torch.inference_mode():
            found.append(product(x, None))
    for result in found[1:]:
        assert torch.equal(result, found[0])


def test_an_engine_applies_it(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
    for name in ("plain", "auto"):
        make_llm(text_checkpoint.path, device="cpu", cpu_isa=name)
        assert current_isa() == (name if name == "plain" else available_isas()[-1])
