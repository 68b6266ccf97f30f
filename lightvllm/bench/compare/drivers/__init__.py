"""Programs that run in the contenders' processes, each by its path: the environments of peers have no lightvllm."""
