"""Uvicorn's HTTP/1.1, with two things of ours: OpenAI's error object for what is no HTTP, and patience with an end."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightvllm.server.errors import ApiError


def http_protocol(client_timeout: float) -> type[H11Protocol]:
    """The protocol to give to uvicorn.

    Args:
        client_timeout: seconds that a client has to send a request's header. Of the body `body.py` says the same.
    """

    class Protocol(H11Protocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._be_patient(True)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._be_patient(False)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._be_patient(self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE)

        def _be_patient(self, awaits_header: bool) -> None:
            if not awaits_header and self._patience is not None:
                self._patience.cancel()
                self._patience = None
            elif awaits_header and self._patience is None:
                self._patience = self.loop.call_later(client_timeout, self.transport.close)

        def send_400_response(self, msg: str) -> None:
            body = json.dumps(ApiError(400, "this is not HTTP/1.1, or its header is too large").body()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
