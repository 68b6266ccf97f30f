"""What both clients need to know of the HTTP library."""

import httpx2

from lightvllm.client.calls import CONNECT_SECONDS
from lightvllm.client.errors import APIConnectionError


def http_timeout(seconds: float | None) -> httpx2.Timeout:
    """The longest silence; connecting takes no longer than a server that is there needs."""
    connect = CONNECT_SECONDS if seconds is None else min(seconds, CONNECT_SECONDS)
    return httpx2.Timeout(seconds, connect=connect, pool=None)


def connection_error(url: str, error: httpx2.RequestError) -> APIConnectionError:
    """The library's error in our words. A server that is silent may still be at work, so it is not asked again."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return APIConnectionError(f"cannot reach {url}: {reason}", can_retry=True)
    if isinstance(error, httpx2.TimeoutException):
        return APIConnectionError(f"{url} was silent for too long: {reason}")
    return APIConnectionError(f"the connection to {url} broke: {reason}", can_retry=True)
