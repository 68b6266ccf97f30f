"""When requests are tried again, and after how long."""

import email.utils
import time

import pytest

from lightvllm.client.errors import APIConnectionError, APIError, error_of_response
from lightvllm.client.retry import RetryPolicy


def test_waiting_doubles_up_to_a_bound() -> None:
    policy = RetryPolicy(max_retries=10)
    busy = APIError(503, "busy")
    for num_failures, longest in [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (10, 8.0)]:
        delays = [policy.delay(num_failures, busy) or 0.0 for _ in range(200)]
        assert longest / 2 <= min(delays) < max(delays) <= longest
        assert max(delays) - min(delays) > longest / 4  # clients that failed together come back apart
    assert policy.delay(11, busy) is None


def test_a_deadline_that_has_passed_is_not_tried_again() -> None:
    assert RetryPolicy().delay(1, APIError(504, "a proxy's")) is not None
    assert RetryPolicy().delay(1, APIError(504, "the request's", code="deadline_exceeded")) is None


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, None])
def test_what_would_fail_again_is_not_tried(status: int | None) -> None:
    assert RetryPolicy().delay(1, APIError(status, "no")) is None
    assert RetryPolicy().delay(1, APIConnectionError("silent", can_retry=False)) is None
    assert RetryPolicy().delay(1, APIConnectionError("nobody there", can_retry=True)) is not None


def test_retry_after() -> None:
    def delay(header: str) -> float | None:
        return RetryPolicy().delay(1, error_of_response(429, b"", header))

    for _ in range(50):
        assert 3 <= (delay("3") or 0) <= 3.2
    assert delay("61") is None  # too long to wait for
    in_20_seconds = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert 18 < (delay(in_20_seconds) or 0) < 21
    assert (delay("soon") or 0) <= 0.5  # as if it had not been said


def test_error_bodies() -> None:
    error = error_of_response(400, b'{"error": {"message": "m", "param": "n", "type": "t", "code": "c"}}', None)
    assert (error.message, error.param, error.type, error.code) == ("m", "n", "t", "c")
    assert error_of_response(400, b'{"error": "only a text"}', None).message == "only a text"
    assert error_of_response(400, b'{"detail": "another form"}', None).message == '{"detail": "another form"}'
    assert error_of_response(400, b"\xff", None).message == "\ufffd"
    assert error_of_response(502, b"", None).message == "an error without a message"
