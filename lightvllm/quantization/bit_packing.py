"""Several small integers in one, as checkpoints keep them."""

import torch
from torch import Tensor


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Unsigned integers of 4 or 8 bits out of 32-bit words, those in the lowest bits first.

    words: [rows, columns] int32 -> [rows, columns * 32 / bits] uint8
    """
    octets = words.contiguous().view(torch.uint8)  # the lowest byte of a word lies first
    if bits == 8:
        return octets
    pairs = octets.to(torch.int16)
    return ((pairs | pairs << 4) & 0x0F0F).view(torch.uint8)
