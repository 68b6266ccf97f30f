"""What the front side of an engine knows of its model, and how it makes requests of prompts. No torch, no cache."""

import itertools
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightvllm.config import EngineConfig
from lightvllm.engine.completions import RequestState
from lightvllm.engine.prompts import Prompt, TokenizedPrompt, tokenize_prompt
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.errors import ParameterError
from lightvllm.hub import resolve_model
from lightvllm.model_config import ModelConfig, read_generation_config
from lightvllm.quantization.config import check_quantization
from lightvllm.sampling_params import SamplingParams, validate_for_model
from lightvllm.seeds import request_seed
from lightvllm.structured import check_structured_outputs


class Frontend:
    """A checkpoint's tokenizer, chat template, end-of-sequence tokens and defaults; checks what users ask.

    Raises:
        ValueError: a checkpoint or a setting that does not work, in words.

    Attributes:
        path: the checkpoint's folder.
        tokenizer: None if `skip_tokenizer_init`.
        model_config: its end-of-sequence tokens are all that count: the model's and the tokenizer's.
        default_sampling_params: generation_config.json's, as arguments of `SamplingParams`.
        chat_template: to be used in place of the model's; None for that.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.path = resolve_model(config.model, config.revision, config.hf_token)
        model_config = ModelConfig.from_pretrained(self.path, config.hf_overrides)
        check_quantization(config.quantization, model_config.quantization)
        self.tokenizer: Tokenizer | None = None
        if not config.skip_tokenizer_init:
            self.tokenizer = Tokenizer.from_pretrained(tokenizer_folder(config, self.path))
        self.default_sampling_params: dict[str, Any]
        self.default_sampling_params, eos = read_generation_config(config.generation_config, model_config)
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            eos = (*eos, self.tokenizer.eos_token_id)
        self.model_config = replace(model_config, eos_token_ids=tuple(dict.fromkeys(eos)))
        self.chat_template = self._read_template(config.chat_template)
        self._numbers = itertools.count()  # of requests; threads may not be given one twice
        self._last_checked: tuple[SamplingParams, SamplingParams] | None = None  # as given, and ready to use

    def tokenize(self, prompt: Prompt, add_special_tokens: bool = True) -> TokenizedPrompt:
        """See `lightvllm.engine.prompts.tokenize_prompt`."""
        return tokenize_prompt(prompt, self.tokenizer, self.model_config.vocab_size, add_special_tokens)

    def open_request(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        stream: bool = False,
    ) -> RequestState:
        """A request, checked and ready for the core.

        Raises:
            ParameterError: a parameter that cannot work.
        """
        if priority and self.config.scheduling_policy != "priority":
            raise ParameterError("priority", 'priority: it only means something with scheduling_policy="priority"')
        params = self._checked(params)
        number = next(self._numbers)
        seed = request_seed(self.config.seed, number) if params.seed is None else params.seed
        return RequestState(
            request_id,
            prompt,
            params,
            self.tokenizer,
            seed=seed,
            eos_token_ids=self.model_config.eos_token_ids,
            priority=priority,
            stream=stream,
        )

    def _checked(self, params: SamplingParams) -> SamplingParams:
        """The caller's parameters, which may change while the request runs, checked and copied: once for equal ones."""
        last = self._last_checked  # looked at once: another thread may put others there meanwhile
        if last is None or last[0] != params:
            last = self._last_checked = (copy(params), self._check(copy(params)))
        return last[1]

    def _check(self, params: SamplingParams) -> SamplingParams:
        if self.tokenizer is None:
            for name in ("stop", "bad_words", "structured_outputs"):
                if getattr(params, name):
                    raise ParameterError(name, f"{name}: text needs a tokenizer, which skip_tokenizer_init left out")
        elif params.bad_words:
            params.resolve_bad_words(self.tokenizer)
        if params.structured_outputs is not None:
            check_structured_outputs(params.structured_outputs)
        validate_for_model(params, self.model_config.vocab_size, self.config.max_logprobs)
        return params

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


def tokenizer_folder(config: EngineConfig, path: Path) -> Path:
    """Where the tokenizer of a checkpoint at `path` is."""
    if config.tokenizer is None:
        return path
    return resolve_model(config.tokenizer, token=config.hf_token, field="tokenizer")
