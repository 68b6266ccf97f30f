"""Load on a server, from outside it: what `lightvllm bench serve` does. Imports no torch."""
