"""The ops' twins in Triton, for NVIDIA GPUs. Nothing here is imported where none is used."""
