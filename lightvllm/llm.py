"""The offline API: `LLM`, with vLLM's names and defaults."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from lightvllm.config import EngineConfig
from lightvllm.engine.build import build_core
from lightvllm.engine.frontend import Frontend
from lightvllm.engine.llm_engine import LLMEngine
from lightvllm.engine.prompts import Prompt, list_prompts
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.outputs import RequestOutput
from lightvllm.sampling_params import SamplingParams

Message = dict[str, Any]


class LLM:
    """A model with its engine, for programs that have their prompts at hand.

    Args:
        model: checkpoint folder or hub name.
        options: the fields of `lightvllm.config.EngineConfig`.

    Raises:
        ValueError: a checkpoint or an option that does not work, in words.
        TypeError: an unknown option, with the nearest known name.

    Examples:
        >>> with LLM("path/to/checkpoint") as llm:
        ...     outputs = llm.generate(["Hello"], SamplingParams(temperature=0, max_tokens=20))
        ...     print(outputs[0].outputs[0].text)
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        self.config = config = EngineConfig(model=str(model), **options)
        frontend = Frontend(config)
        self.tokenizer = frontend.tokenizer
        self.model_config = frontend.model_config
        self.default_sampling_params = frontend.default_sampling_params
        self.chat_template = frontend.chat_template
        self.engine = LLMEngine(build_core(config, frontend.path, frontend.model_config), frontend)
        self.request_ids = map(str, itertools.count())
        self.is_closed = False

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, all of them batched together.

        Args:
            prompts: one or several: text, token ids, or a dictionary (see `lightvllm.engine.prompts`).
            sampling_params: one for all, or one each; None takes the model's defaults.
            use_tqdm: show a progress bar.
            priority: one each, lower goes first; needs scheduling_policy="priority".

        Returns:
            One output per prompt, in their order.

        Raises:
            ValueError: a prompt or parameter that cannot work; nothing runs then.
        """
        return self._run(list_prompts(prompts), sampling_params, priority, use_tqdm, add_special_tokens=True)

    def chat(
        self,
        messages: list[Message] | Sequence[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer conversations.

        Args:
            messages: one conversation, or several: each a list of {"role": ..., "content": ...}.
            chat_template: in place of the model's own.
            add_generation_prompt: end the prompt where the assistant's turn begins.
            continue_final_message: leave the last message open, to be continued.
            tools: for templates that know them.
            chat_template_kwargs: further variables of the template.

        Other arguments, result and errors are those of `generate`.
        """
        conversations = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        if self.tokenizer is None:
            raise ValueError("chat needs a tokenizer, which skip_tokenizer_init left out")
        named = {"tools", "chat_template", "add_generation_prompt", "continue_final_message"}
        for name in named & (chat_template_kwargs or {}).keys():
            raise ValueError(f"chat_template_kwargs: {name!r} is an argument of chat itself")
        prompts = [
            self.tokenizer.apply_chat_template(
                conversation,  # type: ignore[arg-type]
                tools=tools,
                chat_template=chat_template or self.chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, priority, use_tqdm, add_special_tokens=False)

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
        add_special_tokens: bool,
    ) -> list[RequestOutput]:
        if self.is_closed:
            raise RuntimeError("the engine is closed")
        params = self._one_each(prompts, sampling_params)
        if priority is not None and len(priority) != len(prompts):
            raise ValueError(f"priority: {len(priority)} values for {len(prompts)} prompts")
        if self.engine.has_unfinished_requests():
            raise RuntimeError("requests that were added to the engine itself are not finished: step it until they are")
        request_ids = [next(self.request_ids) for _ in prompts]
        outputs: dict[str, RequestOutput] = {}
        try:
            for i, request_id in enumerate(request_ids):
                self.engine.add_request(
                    request_id,
                    prompts[i],
                    params[i],
                    priority=priority[i] if priority else 0,
                    add_special_tokens=add_special_tokens,
                )
            with tqdm(total=len(prompts), desc="Processed prompts", disable=not use_tqdm) as bar:
                while self.engine.has_unfinished_requests():
                    for output in self.engine.step():
                        outputs[output.request_id] = output
                        bar.update()
        finally:
            self.engine.abort_request(request_ids)  # what an error or an interrupt left behind
        return [outputs[request_id] for request_id in request_ids]

    def _one_each(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * len(prompts)
        if not isinstance(params, Sequence) or not all(isinstance(one, SamplingParams) for one in params):
            raise ValueError(f"sampling_params: expected SamplingParams or a list of them, found {params!r:.80}")
        if len(params) != len(prompts):
            raise ValueError(f"sampling_params: {len(params)} given for {len(prompts)} prompts")
        return list(params)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: there is none, by skip_tokenizer_init.
        """
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer: skip_tokenizer_init left it out")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given none: generation_config.json's values over vLLM's defaults."""
        return SamplingParams(**self.default_sampling_params)

    def get_metrics(self) -> EngineStats:
        """The engine's figures at this moment."""
        return self.engine.core.stats()

    @property
    def is_sleeping(self) -> bool:
        """Whether `generate` and `chat` raise a RuntimeError until `wake_up`."""
        return self.engine.core.is_sleeping

    def sleep(self, level: int = 1) -> None:
        """Give up memory: the KV cache with all cached prompts, and the weights'. Needs `enable_sleep_mode`.

        Args:
            level: 1 moves the weights from a GPU to the host's memory, from which they are back in moments; on a CPU
                they stay where they are, and the cache is all that is given up. 2 drops the weights.

        Raises:
            ValueError: there is no such level, sleeping is not enabled, or the host has not the memory.
            RuntimeError: requests that were added to the engine itself are not finished.
        """
        self._check_may_sleep()
        self.engine.core.sleep(level)

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Take the memory back. Weights that were dropped are loaded again, from the checkpoint as it is now.

        Args:
            tags: only these parts, "weights" or "kv_cache"; it sleeps on until both are back.

        Raises:
            ValueError: there is no such part, or other programs have taken the memory; it may be tried again.
        """
        self._check_may_sleep()
        self.engine.core.wake_up(tags)

    def _check_may_sleep(self) -> None:
        if self.is_closed:
            raise RuntimeError("the engine is closed")
        if not self.config.enable_sleep_mode:
            raise ValueError(
                "enable_sleep_mode: False, but an engine that is to sleep must be made with enable_sleep_mode=True"
            )

    def reset_prefix_cache(self) -> None:
        """Forget all cached prompts."""
        self.engine.core.reset_prefix_cache()

    def close(self) -> None:
        """Free weights and KV cache. After it `generate` and `chat` raise a RuntimeError."""
        self.is_closed = True
        self.engine.core.shutdown()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
