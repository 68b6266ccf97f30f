"""Putting an engine core together: executor, cache, scheduler."""

import logging
from pathlib import Path

from lightvllm.config import EngineConfig
from lightvllm.engine.core import EngineCore
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.model_config import ModelConfig

logger = logging.getLogger(__name__)


def build_core(config: EngineConfig, path: Path, model_config: ModelConfig) -> EngineCore:
    """Load the model at `path` and make its engine core, in this process.

    Raises:
        ValueError: a checkpoint or a setting that does not work, in words.
    """
    from lightvllm.executor.local import LocalExecutor  # imports torch, which the front does without

    executor = LocalExecutor(path, config, model_config)
    plan = executor.plan
    logger.info("%s", plan)
    caches_prefixes = config.enable_prefix_caching
    is_stretched = plan.max_model_len > model_config.max_position_embeddings
    if caches_prefixes and model_config.rope.type == "dynamic" and is_stretched:
        logger.warning("prefix caching is off: with dynamic rope scaling a key depends on its whole prompt's length")
        caches_prefixes = False
    return EngineCore(
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
