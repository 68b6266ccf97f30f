"""transformers' `generate` on the same prompts, as the other side of a ratio."""

import time
from typing import Any

import torch
from torch import Tensor

from lightvllm.bench.figures import Figures
from lightvllm.bench.internals import worker_of
from lightvllm.bench.serving import Run
from lightvllm.bench.workload import Workload
from lightvllm.hub import resolve_model
from lightvllm.llm import LLM


class TransformersBaseline:
    """The same checkpoint, in the same number type and on the same device, batched as widely as the engine may batch.

    Raises:
        ValueError: transformers is not installed, or the engine runs another configuration than the checkpoint's.
    """

    def __init__(self, llm: LLM) -> None:
        if llm.config.hf_overrides:
            raise ValueError("hf_overrides: cannot be used with against, as transformers would not know of them")
        try:
            import transformers
        except ImportError:
            raise ValueError("against: transformers is not installed; pip install 'lightvllm[compat]'") from None
        worker, config = worker_of(llm), llm.config
        transformers.utils.logging.disable_progress_bar()
        auto: Any = transformers.AutoModelForCausalLM  # whose own types do not fit each other
        self.model = auto.from_pretrained(
            resolve_model(config.model, config.revision, config.hf_token), dtype=worker.dtype
        )
        self.model.to(worker.device).eval()
        # The checkpoint's own would be mixed into what `run` asks for: its end-of-sequence tokens, its sampling.
        self.model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
        self.device = worker.device
        self.batch_size = config.max_num_seqs

    @torch.inference_mode()
    def run(self, workload: Workload, prompts: list[list[int]]) -> Run:
        """See `lightvllm.bench.serving.Contender.run`."""
        times = _TokenTimes(self.device)
        first_token_times: list[float] = []
        last_token_times: list[float] = []
        token_ids: list[list[int]] = []
        start = time.monotonic()
        for begin in range(0, len(prompts), self.batch_size):
            input_ids = torch.tensor(prompts[begin : begin + self.batch_size], device=self.device)
            times.seconds.clear()
            generated = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=workload.output_len,
                logits_processor=[times],
            )
            token_ids += generated[:, input_ids.shape[1] :].tolist()
            first_token_times += [times.seconds[0] - start] * len(input_ids)
            last_token_times += [times.seconds[-1] - start] * len(input_ids)
        seconds = time.monotonic() - start
        assert all(len(tokens) == workload.output_len for tokens in token_ids)
        return Run(Figures.from_times(workload, seconds, first_token_times, last_token_times), token_ids)


class _TokenTimes:
    """Notes when each token's logits were there: a logits processor that changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.monotonic())
        return scores
