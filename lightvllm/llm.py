"""The offline API: `LLM`, with vLLM's names and defaults."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from lightvllm.config import EngineConfig
from lightvllm.engine.core import EngineCore
from lightvllm.engine.llm_engine import LLMEngine
from lightvllm.engine.prompts import Prompt, list_prompts
from lightvllm.engine.scheduler import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.hub import resolve_model
from lightvllm.model_config import ModelConfig, read_generation_config
from lightvllm.outputs import RequestOutput
from lightvllm.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

Message = dict[str, Any]


class LLM:
    """A model with its engine, for programs that have their prompts at hand.

    Args:
        model: checkpoint folder or hub name.
        options: the fields of `lightvllm.config.EngineConfig`.

    Raises:
        ValueError: a checkpoint or an option that does not work, in words.
        TypeError: an unknown option, with the nearest known name.

    Example:
        >>> with LLM("path/to/checkpoint") as llm:
        ...     outputs = llm.generate(["Hello"], SamplingParams(temperature=0, max_tokens=20))
        ...     print(outputs[0].outputs[0].text)
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        self.config = config = EngineConfig(model=str(model), **options)
        path = resolve_model(config.model, config.revision, config.hf_token)
        model_config = ModelConfig.from_pretrained(path, config.hf_overrides)
        self.tokenizer: Tokenizer | None = None
        if not config.skip_tokenizer_init:
            folder = (
                resolve_model(config.tokenizer, token=config.hf_token, field="tokenizer") if config.tokenizer else path
            )
            self.tokenizer = Tokenizer.from_pretrained(folder)
        self.default_sampling_params, eos = read_generation_config(config.generation_config, model_config)
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            eos = (*eos, self.tokenizer.eos_token_id)
        self.model_config = replace(model_config, eos_token_ids=tuple(dict.fromkeys(eos)))
        self.chat_template = self._read_template(config.chat_template)
        self.engine = _build_engine(path, config, self.model_config, self.tokenizer)
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

    def _read_template(self, template: str | None) -> str | None:
        """A template as it is, by the name the tokenizer has for it, or in a file."""
        names = self.tokenizer.chat_templates if self.tokenizer is not None else {}
        if template is None or "{" in template or template in names:
            return template
        path = Path(template)
        if not path.is_file():
            raise ValueError(
                f"chat_template: {template!r} is neither a Jinja template, nor a file, nor in {sorted(names)}"
            )
        return path.read_text(encoding="utf-8")

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


def _build_engine(
    path: Path, config: EngineConfig, model_config: ModelConfig, tokenizer: Tokenizer | None
) -> LLMEngine:
    from lightvllm.executor.local import LocalExecutor  # imports torch, which nothing above needs

    executor = LocalExecutor(path, config, model_config)
    plan = executor.plan
    logger.info("%s", plan)
    caches_prefixes = config.enable_prefix_caching
    if (
        caches_prefixes
        and model_config.rope.type == "dynamic"
        and plan.max_model_len > model_config.max_position_embeddings
    ):
        logger.warning("prefix caching is off: with dynamic rope scaling a key depends on its whole prompt's length")
        caches_prefixes = False
    core = EngineCore(
        executor,
        SchedulerConfig(
            num_blocks=plan.num_blocks,
            max_model_len=plan.max_model_len,
            block_size=plan.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=caches_prefixes,
            policy=config.scheduling_policy,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
        ),
    )
    return LLMEngine(core, tokenizer, model_config, seed=config.seed, max_logprobs=config.max_logprobs)
