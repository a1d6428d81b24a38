"""The composition root of a gateway process."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CollectorRegistry

import app as package
from app.core.errors import AimassError
from app.gateway import document, not_built
from app.gateway.auth import KeyCache
from app.gateway.beside import other_sockets
from app.gateway.datasets import endpoints as datasets
from app.gateway.deps import Gateway
from app.gateway.endpoints import endpoints
from app.gateway.errors import document_problems, install
from app.gateway.grpc.server import GrpcServer
from app.gateway.grpc.service import InferenceService
from app.gateway.jobs import endpoints as jobs
from app.gateway.keys import endpoints as keys
from app.gateway.loading import Loader
from app.gateway.middleware import RequestMiddleware
from app.gateway.models import endpoints as models
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.gateway.predict.openapi import document as document_predictions
from app.gateway.probes import endpoints as probes
from app.gateway.probes.exposition import Exposition
from app.gateway.probes.jobs import JobMetrics
from app.gateway.processes import Processes
from app.services.platform import Platform, open_platform
from app.services.reconcile import reconcile_queue
from app.serving.host import Host
from app.settings import Settings, TelemetrySettings
from app.specs.endpoints import EndpointSpec
from app.specs.jobs import SUBMITTED
from app.telemetry.metrics import ServingMetrics
from app.telemetry.spans import Exporter

log = logging.getLogger("aimass.gateway")
ROUTERS = (
    datasets.router,
    jobs.router,
    models.router,
    endpoints.router,
    keys.router,
    probes.router,
    document.router,
    not_built.router,
)
DESCRIPTION = """Data in, verified and compressed ONNX models behind batched endpoints out.

Errors of `/api/v1` are RFC 9457 problems with a stable `code`; long work answers 202 with a job.
"""


def create_app(settings: Settings, number: int | None = None) -> tuple[Dispatcher, asyncio.Event]:
    """The ASGI application, predictions in front and FastAPI behind; and what is set once it has loaded its endpoints.

    `number` is this process's place under a launcher.
    """
    platform = open_platform(settings)
    metrics = CollectorRegistry()
    host = Host(settings.serving, ServingMetrics(metrics), settings.limit.image_megapixels)
    processes = Processes(platform, number)
    neighbours = other_sockets(settings, number)
    state = Gateway(
        platform=platform,
        host=host,
        keys=KeyCache(platform),
        loader=Loader(platform, host, processes),
        processes=processes,
        exposition=Exposition(metrics, number or 0, neighbours),
        job_metrics=JobMetrics(platform),
        exporter=_exporter(settings.telemetry),
    )
    bodies = Bodies(max(settings.limit.bodies_mb, settings.serving.max_body_mb) << 20)
    api = FastAPI(
        title="AI Mass",
        version=package.__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(state, bodies, alone=not neighbours),
        openapi_url=None,  # `document` answers it
        redirect_slashes=False,  # clients of the Open Inference Protocol take a redirect for an error
    )
    # Apart: FastAPI reads bodies before it asks for the key, and strangers must not use up what predictions have.
    others = Bodies(
        max(settings.limit.bodies_mb // 4, settings.gateway.max_body_mb) << 20,
        "a quarter of AIMASS_LIMIT_BODIES_MB, at least AIMASS_GATEWAY_MAX_BODY_MB",
    )
    api.state.gateway = state
    install(api, ROUTERS)
    for router in ROUTERS:
        api.include_router(router)
    api.add_middleware(
        RequestMiddleware, max_body=settings.gateway.max_body_mb << 20, bodies=others, exporter=state.exporter
    )
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign] # FastAPI's documented way
    front = Dispatcher(api, host, state.keys, state.loader, settings.serving, state.exporter, bodies)
    return front, state.loader.loaded


def _exporter(settings: TelemetrySettings) -> Exporter | None:
    if not settings.otlp_url:
        return None
    from app.telemetry.tracing import Tracing  # noqa: PLC0415 - the library's memory is for who wants spans

    return Tracing(settings)


async def _start_or_end(grpc: Any) -> None:  # noqa: ANN401 - imported where it is needed
    """A process that cannot listen is of no use: the launcher starts another, and gives up after some."""
    try:
        await grpc.start()
    except Exception:
        log.exception("cannot listen for gRPC (AIMASS_GATEWAY_GRPC_PORT)")
        signal.raise_signal(signal.SIGTERM)
        raise


def _lifespan(state: Gateway, bodies: Bodies, *, alone: bool) -> Any:  # noqa: ANN401 - Starlette's own protocol type is private
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with contextlib.suppress(AimassError):  # without a registry it starts all the same, and /readyz says why
            await state.processes.join()
            await state.loader.expect()  # loading takes as long as it takes, and probes are answered meanwhile
        grpc = _grpc_server(state, bodies)
        if grpc is not None and alone:
            await grpc.start()
        elif grpc is not None:  # the kernel gives calls to whoever listens, whether he has loaded or not
            state.loader.before_ready = partial(_start_or_end, grpc)
        tasks = [
            asyncio.create_task(state.loader.run(), name="loader"),
            asyncio.create_task(state.processes.run(state.loader.report_all), name="heartbeat"),
            asyncio.create_task(_reconcile(state.platform), name="reconcile"),
        ]
        try:
            yield
        finally:
            if grpc is not None:
                await grpc.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await state.processes.leave()
            await state.host.close()
            if state.exporter is not None:
                await asyncio.to_thread(state.exporter.close)
            await state.platform.close()

    return lifespan


def _grpc_server(state: Gateway, bodies: Bodies) -> GrpcServer | None:
    settings = state.platform.settings
    if settings.gateway.grpc_port < 0:
        return None
    service = InferenceService(state.host, state.keys, state.loader, bodies, state.exporter)
    return GrpcServer(service, settings.gateway, settings.serving.max_body_mb << 20)


async def _reconcile(platform: Platform) -> None:
    """Gateways reconcile too, so that jobs of dead workers are seen when no worker is left."""
    while True:
        await asyncio.sleep(platform.settings.queue.reconcile_s)
        try:
            await reconcile_queue(platform)
        except AimassError as error:
            log.warning("the queue could not be reconciled: %s", error.detail)
        except Exception:
            log.exception("the queue could not be reconciled")


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's document, the prediction paths, and the schemas that are validated by hand."""
    if api.openapi_schema is None:
        document_ = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        document_problems(document_)
        schemas = document_["components"]["schemas"]
        for spec in (*SUBMITTED.values(), EndpointSpec):
            schema = spec.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[spec.__name__] = schema
        api.openapi_schema = document_predictions(document_)
    return api.openapi_schema
