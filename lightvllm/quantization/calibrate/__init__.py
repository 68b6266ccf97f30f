"""Making quantized checkpoints: `walk.quantize_checkpoint`, which `lightvllm quantize` is the command of.

schemes (what there is), data (what to calibrate with), walk (layer by layer), observe (what a layer is given), grid
(rounding), gptq, migrate (AWQ, SmoothQuant), folder (what is written), report. Nothing here imports transformers.
"""
