"""The product with a weight of 8 or 4 bits, however its values were found.

A weight w is s (q - z): q an unsigned integer, s and z a scale and a zero point for each output, or for each output and
group of inputs. Inputs are rounded to 8 bits on the way, each group of a token's by a scale of its own, so that
products are of integers.
"""

from torch import Tensor

from lightvllm import kernels

# Inputs that share a scale where nothing else is said, of 4 bits.
GROUP_SIZE = 128


class QuantizedProduct:
    """The product with a quantized weight.

    Args:
        values: [out_features, in_features] uint8, of 4 bits below 16.
        scales: [out_features, groups] float32
        zeros: [out_features, groups] int32, the values that mean zero; None for 2^(bits - 1).
        group_size: neighbouring inputs that share a scale; a multiple of 8 where there are several groups.
        codebook: [16] uint8, for 4 bits: `values` are indices into it, and zeros (None: 128) are among its bytes. So
            are types like NF4 (Dettmers et al., 2023), rounded to 8 bits.
    """

    def __init__(
        self,
        values: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bits: int,
        group_size: int,
        codebook: Tensor | None = None,
    ) -> None:
        self.packed = kernels.pack_quantized(values, bits)
        self.scales = kernels.pack_groups(scales)
        self.zeros = None if zeros is None else kernels.pack_groups(zeros)
        self.codebook = codebook
        self.bits = bits
        self.group_size = group_size
        self.out_features = len(values)

    @classmethod
    def round(cls, weight: Tensor, bits: int) -> "QuantizedProduct":
        """Of a plain weight, [out_features, in_features]: one scale for each output, of 4 bits for each group."""
        group_size = weight.shape[1] if bits == 8 else GROUP_SIZE
        values, scales = kernels.round_weight(weight, bits, group_size)
        return cls(values, scales, None, bits, group_size)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]"""
        return kernels.quantized_linear(
            x, self.packed, self.scales, self.zeros, self.codebook, bias, self.bits, self.group_size, self.out_features
        )
