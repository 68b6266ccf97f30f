"""Linear layers. A model asks for one and never knows whether it is full precision, quantized, sharded or adapted."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With fewer rows oneDNN takes other routes for some shapes, which round differently. More rows, the same route: so a
# token's result does not depend on how many others run beside it.
MIN_ROWS = 4


class Linear(nn.Module):
    """y = x W^T + b, with several outputs that share an input fused into one product.

    Args:
        in_features: size of the input.
        out_features: sizes of the outputs; a checkpoint has a weight for each, here they lie in one, in order.
        bias: whether each output has a bias.
    """

    def __init__(self, in_features: int, out_features: list[int], bias: bool = False) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight: Tensor | None = nn.Parameter(torch.empty(sum(out_features), in_features))
        self.bias = nn.Parameter(torch.empty(sum(out_features))) if bias else None
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Lay the weight out as the CPU's matrix kernels read it, for inference only; the plain weight is let go.

        The layout is oneDNN's, reached through the operators that torch.compile uses; where they are not there, on a
        GPU and in other number types, the weight stays as it is.
        """
        if self.weight is None or self.weight.device.type != "cpu" or not can_pack(self.weight.dtype):
            return
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), 32)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., sum(out_features)]"""
        if self.packed is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        rows = len(x)
        if rows < MIN_ROWS:
            x = F.pad(x, (0, 0, 0, MIN_ROWS - rows))
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")[:rows]


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch, on this processor, multiplies with packed weights of this type."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
