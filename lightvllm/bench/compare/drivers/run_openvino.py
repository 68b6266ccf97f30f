"""OpenVINO GenAI as a contender, on a GGUF file. Options: model, kv_cache_bytes, max_num_batched_tokens, threads."""

from typing import Any

from serve import Generate, Stopwatch, serve  # type: ignore[import-not-found]


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """See `serve.serve`."""
    import numpy
    import openvino  # type: ignore[import-not-found]
    import openvino_genai  # type: ignore[import-not-found]

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = options["kv_cache_bytes"] >> 30
    scheduler.max_num_batched_tokens = options["max_num_batched_tokens"]
    scheduler.enable_prefix_caching = True
    threads = {"INFERENCE_NUM_THREADS": options["threads"]}
    pipeline = openvino_genai.ContinuousBatchingPipeline(options["model"], scheduler, "CPU", threads)

    def generate(prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        stopwatch = Stopwatch(len(prompts))
        handles = []
        for request, (prompt, length) in enumerate(zip(prompts, output_lens, strict=True)):
            config = openvino_genai.GenerationConfig(max_new_tokens=length, ignore_eos=True, do_sample=False)
            tensor = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
            handles.append(pipeline.add_request(request, tensor, config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for request, handle in enumerate(handles):
                if handle.can_read():
                    stopwatch.note(request, sum(len(output.generated_ids) for output in handle.read().values()))
        return stopwatch.record()

    return openvino_genai.__version__.partition("-")[0], generate


if __name__ == "__main__":
    serve(load)
