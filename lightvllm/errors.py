"""What can be wrong with a request, as exceptions that say whose mistake it is. Imports nothing."""


class ParameterError(ValueError):
    """A user's mistake in one parameter: the message names the value and what would be right.

    Attributes:
        parameter: the parameter's name, exactly as the user gave it.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class EngineOverloaded(RuntimeError):
    """The queue is full: nothing is wrong with the request, and it may be sent again.

    Attributes:
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(RuntimeError):
    """No engine answers: it shuts down, or could not be started again."""


class EngineAsleep(EngineUnavailable):
    """The engine sleeps, and does so until somebody wakes it up."""


class EngineBusy(RuntimeError):
    """What was asked cannot be done while requests wait or run."""


class DeviceLost(BaseException):
    """A GPU that no process but a new one can use again: no request is to blame, and none can be served any more.

    Not an Exception, or the step's requests would be tried one by one and all fail: the engine's process is to end.
    """
