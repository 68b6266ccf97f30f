"""What can be asked of an engine that is to sleep or to wake up, checked."""

from collections.abc import Sequence

from lightvllm.errors import ParameterError

# What is given up, by vLLM's names.
PARTS = ("weights", "kv_cache")
LEVELS = (1, 2)


def check_level(level: int) -> None:
    """Raise a ParameterError unless there is such a level."""
    if isinstance(level, bool) or level not in LEVELS:
        raise ParameterError("level", f"level: {level!r} is not supported, expected 1 or 2")


def check_tags(tags: Sequence[str] | None) -> frozenset[str]:
    """The parts that are named, all for None; a ParameterError unless there are such parts."""
    unknown = [tag for tag in tags or () if tag not in PARTS] if not isinstance(tags, str) else [tags]
    if unknown:
        raise ParameterError("tags", f"tags: {unknown[0]!r} is not supported, expected a list of {list(PARTS)}")
    return frozenset(PARTS if tags is None else tags)
