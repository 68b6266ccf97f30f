"""Weights of 8 and 4 bits by rounding to the nearest."""

from lightvllm import kernels

# Inputs that share a scale, of 4 bits.
GROUP_SIZE = 128

round_weight = kernels.round_weight
