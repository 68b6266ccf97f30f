"""What a user can set: frozen dataclasses, checked once, from which the command line's flags are made too."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from lightvllm.attention.registry import BACKENDS
from lightvllm.engine.policy import POLICIES
from lightvllm.quantization.config import FORMATS
from lightvllm.sampling_params import refuse_unknown_arguments

# The text-to-SQL model that ships with the package, used where no model is named.
DEFAULT_MODEL = Path(__file__).parent / "default_model"

if TYPE_CHECKING:
    Backend: TypeAlias = str
    Policy: TypeAlias = str
    Quantization: TypeAlias = str
else:  # What is registered is a choice at once, here and among the flags.
    Backend = Literal["auto", *BACKENDS]
    Policy = Literal[tuple(POLICIES)]
    Quantization = Literal["int8", "w4", *FORMATS]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@refuse_unknown_arguments
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine's settings, with vLLM's names and defaults."""

    model: str = field(metadata={"help": "checkpoint folder or hub name (owner/name)"})
    tokenizer: str | None = _option(None, "folder or hub name of the tokenizer, if not the model's")
    skip_tokenizer_init: bool = _option(False, "load no tokenizer: prompts are token ids, outputs have no text")
    revision: str | None = _option(None, "branch, tag or commit of a hub model")
    hf_token: str | None = field(default=None, repr=False, metadata={"help": "token for the hub"})
    hf_overrides: dict[str, Any] | None = field(
        default=None, metadata={"help": "values that take the place of config.json's (JSON)"}
    )
    dtype: str = _option("auto", "auto (the checkpoint's), float32, bfloat16 or float16")
    quantization: Quantization | None = field(
        default=None,
        metadata={
            "help": "round the weights while loading: int8, or w4 (4 bits, the head 8); a quantized checkpoint needs "
            "no flag, its format's name is taken and checked"
        },
    )
    load_format: Literal["auto", "dummy"] = _option(
        "auto",
        "auto (the checkpoint's safetensors), or dummy: random weights of config.json's shape, no file read",
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    seed: int = _option(0, "of the random draws of requests without a seed of their own")
    max_model_len: int | None = _option(
        None, "longest prompt plus output in tokens; default: the model's, or what fits"
    )
    max_num_seqs: int = _option(256, "most requests in one step")
    max_num_batched_tokens: int = _option(4096, "most tokens computed in one step")
    long_prefill_token_threshold: int = _option(0, "most tokens of one request computed in one step; 0: no limit")
    block_size: int = _option(16, "tokens per KV-cache block")
    kv_cache_memory_bytes: int | None = _option(
        None, "size of the KV cache, all of it taken at start; default: from the memory that is free, taken as it fills"
    )
    kv_cache_dtype: Literal["auto", "int8"] = _option(
        "auto", "type of the KV cache: auto (the model's), or int8, which holds about twice the tokens"
    )
    gpu_memory_utilization: float = _option(0.92, "share of a GPU's memory to use, where no KV-cache size is given")
    enable_prefix_caching: bool = _option(True, "keep the KV cache of prompts for later ones that begin alike")
    scheduling_policy: Policy = field(default="fcfs", metadata={"help": "which request goes first"})
    enable_sleep_mode: bool = _option(
        False, "let the engine give up its memory: LLM.sleep and wake_up, the server's /sleep and /wake_up"
    )
    max_logprobs: int = _option(20, "most log-probabilities a request may ask for per token; -1: no limit")
    generation_config: str = _option("auto", "default sampling parameters: auto (the model's), vllm (none) or a folder")
    chat_template: str | None = _option(None, "Jinja chat template, or a file with one, in place of the model's")
    attention_backend: Backend = field(default="auto", metadata={"help": "attention implementation"})
    enforce_eager: bool = _option(
        False, "launch every kernel of a decode; else attention_backend triton and cuda replay captured CUDA graphs"
    )
    batch_invariant: bool = _option(
        False, "on a GPU, give a request the same bits in any company, at a price; on a CPU it is always so"
    )
    async_scheduling: bool = _option(
        True, "with attention_backend triton, cuda and flash, schedule the next step while one runs"
    )
    cpu_isa: Literal["auto", "plain", "avx2", "avx512", "avx512vnni", "amx"] = _option(
        "auto",
        "most that the CPU kernels of the process may use: auto is all there is; avx512vnni is with BF16, too, "
        "amx with tiles of both",
    )
    # What vLLM's users set explicitly and has one value here so far: that one is taken, any other is an error.
    tensor_parallel_size: Literal[1] = _option(1, "devices that share the model: one so far")
    trust_remote_code: Literal[False] = _option(False, "run code from a checkpoint: never")

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))  # vLLM takes torch.bfloat16, too
        for option in fields(self):
            _check_type(option.name, getattr(self, option.name), option.type)
        least = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "block_size": 1, "max_model_len": 2}
        least |= {"kv_cache_memory_bytes": 1, "long_prefill_token_threshold": 0, "max_logprobs": -1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}: {value} is out of range, expected at least {bound}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization: {self.gpu_memory_utilization} is out of range, expected (0, 1]")


def _check_type(name: str, value: Any, annotation: Any) -> None:
    """Raise a ValueError unless the value is of the annotated type: a class, a Literal, or several of these."""
    kinds = (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)
    if get_origin(annotation) in (dict, list):
        kinds = (annotation,)
    expected = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            if any(value is choice or (value == choice and type(value) is type(choice)) for choice in get_args(kind)):
                return
            expected.append(f"one of {list(get_args(kind))}")
        else:
            of = get_origin(kind) or kind
            if type(value) is of or (of is float and type(value) is int):
                return
            expected.append("None" if of is type(None) else of.__name__)
    if any(get_origin(kind) is Literal for kind in kinds):
        raise ValueError(f"{name}: {value!r} is not supported, expected {' or '.join(expected)}")
    raise ValueError(f"{name}: {value!r} is a {type(value).__name__}, expected {' or '.join(expected)}")


@refuse_unknown_arguments
@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP server's settings, with vLLM's names where vLLM has them."""

    host: str = _option("127.0.0.1", "address to listen on; 0.0.0.0 is every network this machine is in")
    port: int = _option(8000, "port to listen on; 0 takes a free one, which is logged")
    served_model_name: list[str] | None = field(
        default=None, metadata={"help": "name of the model in the API, by default as --model says"}
    )
    api_key: list[str] | None = field(
        default=None, repr=False, metadata={"help": "keys that clients must send; LIGHTVLLM_API_KEY adds one"}
    )
    api_key_file: str | None = _option(None, "file with keys that clients must send, one a line")
    allowed_origins: list[str] | None = field(
        default=None, metadata={"help": "origins that browsers may call from (CORS); * is any"}
    )
    ssl_keyfile: str | None = _option(None, "TLS: file with the private key")
    ssl_certfile: str | None = _option(None, "TLS: file with the certificate")
    ssl_ca_certs: str | None = _option(None, "TLS: file with the authorities that clients must have a certificate of")
    root_path: str = _option("", "path under which a proxy serves this server")
    log_format: Literal["text", "json"] = _option("text", "how log lines look")
    access_log: bool = _option(True, "log a line for each request")
    otlp_traces_endpoint: str | None = _option(None, "URL that OpenTelemetry traces are sent to")
    debug_engine: bool = _option(True, "serve /debug/engine, the engine's steps as they happen")
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "none"] = _option(
        "auto", "how the model writes tool calls; auto tells by the chat template"
    )
    reasoning_parser: Literal["auto", "think", "none"] = _option(
        "auto", "how the model marks its reasoning; auto tells by the chat template"
    )
    trust_request_chat_template: bool = _option(False, "let requests bring chat templates of their own")
    max_request_bytes: int = _option(32 * 2**20, "largest request body")
    max_queued_requests: int = _option(1024, "requests (of n > 1: n) that may wait or run; more are answered with 503")
    max_queued_tokens: int = _option(1024 * 1024, "prompt tokens that may wait or run; more are answered with 503")
    max_completions: int = _option(128, "most completions (n) of one request")
    client_timeout: float = _option(60.0, "seconds in which a client must send its request, or read what it is sent")
    engine_timeout: float = _option(
        120.0, "seconds without a step after which the engine counts as hung; longer than any step"
    )
    shutdown_timeout: float = _option(30.0, "seconds that running requests have after SIGTERM")

    def __post_init__(self) -> None:
        for option in fields(self):
            _check_type(option.name, getattr(self, option.name), option.type)
        positive = ("max_request_bytes", "max_queued_requests", "max_queued_tokens", "max_completions")
        for name in (*positive, "client_timeout", "engine_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range, expected more than 0")
        if self.shutdown_timeout < 0:
            raise ValueError(f"shutdown_timeout: {self.shutdown_timeout} is out of range, expected at least 0")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port: {self.port} is out of range, expected 0 to 65535")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_keyfile, ssl_certfile: one goes with the other")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ValueError("ssl_ca_certs: only with ssl_keyfile and ssl_certfile")

    def api_keys(self) -> frozenset[str]:
        """Every key that is accepted: given, in the file, and in the environment. Empty: none is asked for.

        Raises:
            ValueError: the file cannot be read, or a key is empty.
        """
        keys = list(self.api_key or [])
        if self.api_key_file is not None:
            try:
                lines = Path(self.api_key_file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"api_key_file: cannot read {self.api_key_file!r}: {error}") from None
            keys += [line.strip() for line in lines if line.strip()]
            if not keys:
                raise ValueError(f"api_key_file: {self.api_key_file!r} has no key in it")
        keys += [key for key in [os.environ.get("LIGHTVLLM_API_KEY")] if key is not None]
        if not all(keys):
            raise ValueError("api_key: a key is empty")
        return frozenset(keys)
