"""What quantization costs: a model in full precision and its quantized variants side by side.

windows (what tokens count), measure (one variant, in a process of its own), side_by_side (all of them), report, plot.
"""
