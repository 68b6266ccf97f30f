"""transformers' `generate` as a contender. Options: model."""

from typing import Any

from serve import Generate, Stopwatch, serve  # type: ignore[import-not-found]


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """See `serve.serve`."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16).eval()
    # Nothing but this: not the checkpoint's end-of-sequence token, not its sampling.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        if len({len(prompt) for prompt in prompts}) > 1 or len(set(output_lens)) > 1:
            raise ValueError("its batches are of one length")
        input_ids = torch.tensor(prompts)
        stopwatch = Stopwatch(len(prompts))

        def note(_: object, scores: torch.Tensor) -> torch.Tensor:
            for request in range(len(prompts)):
                stopwatch.note(request, 1)
            return scores

        processors = transformers.LogitsProcessorList([note])  # one that changes nothing
        attention_mask = torch.ones_like(input_ids)
        tokens = model.generate(
            input_ids, attention_mask=attention_mask, max_new_tokens=output_lens[0], logits_processor=processors
        )
        record = stopwatch.record()
        record["lens"] = [tokens.shape[1] - input_ids.shape[1]] * len(prompts)
        return record

    return transformers.__version__, generate


if __name__ == "__main__":
    serve(load)
