"""What a step did to whom: the engine, made visible."""

import msgspec


class StepTrace(msgspec.Struct, frozen=True):
    """One step's batch, queues and block changes."""
