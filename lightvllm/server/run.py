"""The server's life: load, listen, serve, and end in good order."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightvllm.config import EngineConfig, ServerConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.observer import Observers
from lightvllm.server.logs import configure_logging
from lightvllm.server.metrics import Metrics
from lightvllm.server.tracing import Tracing

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

# How long what is left at the end, such as streams of `/debug/engine`, has to close.
CLOSE_TIMEOUT = 2
# Seconds between looks at the clock (for the Date header) and at whether to stop. Uvicorn's own tenth costs an idle
# server a percent of a core.
IDLE_TICK = 0.5
MAX_HEADER_BYTES = 64 * 1024

logger = logging.getLogger(__name__)


def run_server(engine_config: EngineConfig, config: ServerConfig, debug: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        ValueError: a setting or a checkpoint that does not work.
    """
    configure_logging(config.log_format, "DEBUG" if debug else "INFO")
    # When it starts and stops is said here; that an answer was left unfinished, where it was.
    logging.getLogger("uvicorn").setLevel("DEBUG" if debug else "WARNING")
    logging.getLogger("uvicorn.error").addFilter(lambda line: "without completing response" not in line.getMessage())
    config.api_keys()  # whether they can be read
    check_certificates(config)
    listener = _bind(config)
    with contextlib.closing(listener):
        return asyncio.run(_Server(engine_config, config, listener).run())


class _Server:
    """One run of the server."""

    def __init__(self, engine_config: EngineConfig, config: ServerConfig, listener: socket.socket) -> None:
        self.config = config
        self.listener = listener
        self.model_names = config.served_model_name or [_model_name(engine_config.model)]
        self.metrics = Metrics(self.model_names[0])
        self.tracing = Tracing(config.otlp_traces_endpoint, self.model_names[0])
        self.engine = AsyncEngine(
            engine_config,
            Observers(self.metrics, self.tracing),
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens,
            engine_timeout=config.engine_timeout,
        )
        self.stop_signals = 0
        self.stop_asked = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal, number)
        starting = asyncio.create_task(self.engine.start())
        stopping = asyncio.create_task(self.stop_asked.wait())
        app, server = await asyncio.to_thread(self._build)  # its imports take as long as the engine's
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        starting.result()
        serving = asyncio.create_task(server.serve(sockets=[self.listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.001)
        scheme = "https" if self.config.ssl_certfile else "http"
        host, port = self.listener.getsockname()[:2]
        logger.info("serving %s at %s://%s:%d", ", ".join(self.model_names), scheme, host, port)
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await self._drain(app)
        server.should_exit = True
        await serving
        await self.engine.stop(0)
        self.tracing.close()
        return 0

    async def _drain(self, app: "FastAPI") -> None:
        """No new work; what runs has its time to finish."""
        app.state.draining = True
        num_left, seconds = self.engine.num_unfinished, self.config.shutdown_timeout
        logger.info("stopping: %d requests have %g s to finish; another signal ends at once", num_left, seconds)
        await self.engine.stop(seconds)

    def _build(self) -> tuple["FastAPI", "uvicorn.Server"]:
        import uvicorn

        from lightvllm.server.app import build_app
        from lightvllm.server.http import http_protocol

        app = build_app(self.engine, self.config, model_names=self.model_names, metrics=self.metrics)

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield  # signals are `_take_signal`'s

            async def main_loop(self) -> None:
                while not await self.on_tick(0):
                    await asyncio.sleep(IDLE_TICK)

        return app, Server(
            uvicorn.Config(
                app,
                http=http_protocol(self.config.client_timeout),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                root_path=self.config.root_path,
                ssl_keyfile=self.config.ssl_keyfile,
                ssl_certfile=self.config.ssl_certfile,
                ssl_ca_certs=self.config.ssl_ca_certs,
                ssl_cert_reqs=ssl.CERT_NONE if self.config.ssl_ca_certs is None else ssl.CERT_REQUIRED,
                timeout_graceful_shutdown=CLOSE_TIMEOUT,
            )
        )

    def _take_signal(self, number: int) -> None:
        self.stop_signals += 1
        if self.stop_signals > 1:
            logger.warning("another signal: ending at once")
            self.engine.kill()
            sys.stderr.flush()
            os._exit(128 + number)
        self.stop_asked.set()


def check_certificates(config: ServerConfig) -> None:
    """Find out before the model is loaded whether the files of TLS are of use.

    Raises:
        ValueError: they are not.
    """
    if config.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:  # of malformed files, too
        files = f"{config.ssl_certfile!r} and {config.ssl_keyfile!r}"
        raise ValueError(f"ssl_certfile, ssl_keyfile: {files} are no certificate and its key: {error}") from None
    try:
        if config.ssl_ca_certs is not None:
            context.load_verify_locations(config.ssl_ca_certs)
    except OSError as error:
        raise ValueError(f"ssl_ca_certs: {config.ssl_ca_certs!r} has no certificates: {error}") from None


def _bind(config: ServerConfig) -> socket.socket:
    """The socket to listen on, taken before the model is loaded. It refuses connections until the server listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: connections whose client reads nothing are closed
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(config.client_timeout * 1000))
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"host, port: cannot listen on {config.host}:{config.port}: {error}") from None
    return listener


def _model_name(model: str) -> str:
    """A hub name as it is, of a folder the last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model
