"""GRPCInferenceService: the Open Inference Protocol's calls over gRPC."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import AimassError, NotBuilt
from app.gateway.grpc.calls import Context, admit, call, refuse, unexpected
from app.gateway.grpc.messages import fill, read_infer, write_infer
from app.gateway.predict.exchange import OIP_STATUS
from app.gateway.predict.ports import Authenticator, Repository
from app.gateway.predict.running import within
from app.gateway.trace import begin_trace, continue_trace, export
from app.serving.describe import SERVER, configuration, statistics
from app.serving.host import Host, ServedModel
from app.serving.tensors import INLINE_JSON_BYTES
from app.telemetry.metrics import PHASES
from app.telemetry.spans import Exporter

# Requests of one stream that may be under way: the reader waits for the oldest before it takes another.
STREAM_WINDOW = 64
_FINAL, _ASKS_FINAL = "triton_final_response", "triton_enable_empty_final_response"


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # the stubs have no types
    """Answers every call from the models of this process."""

    def __init__(
        self, host: Host, auth: Authenticator, repository: Repository, exporter: Exporter | None = None
    ) -> None:
        self.auth = auth
        self._exporter = exporter
        self._host = host
        self._repository = repository

    @call(None)
    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: Context) -> pb.ServerLiveResponse:
        """True while this process answers."""
        return pb.ServerLiveResponse(live=True)

    @call(None)
    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: Context) -> pb.ServerReadyResponse:
        """True if at least one model can answer."""
        return pb.ServerReadyResponse(ready=self._host.ready())

    @call("read")
    async def ModelReady(self, request: pb.ModelReadyRequest, _context: Context) -> pb.ModelReadyResponse:
        """True if the model can answer; an unknown one is not ready."""
        try:
            self._host.check(request.name, request.version or None)
        except AimassError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    @call("read")
    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _context: Context) -> pb.ServerMetadataResponse:
        """Name, version and extensions."""
        return fill(SERVER, pb.ServerMetadataResponse())

    @call("read")
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _context: Context) -> pb.ModelMetadataResponse:
        """Tensors and versions of a model."""
        served = await self._host.reach(request.name, request.version or None)
        return fill(served.oip.metadata([served.version]), pb.ModelMetadataResponse())

    @call("read")
    async def ModelConfig(self, request: pb.ModelConfigRequest, _context: Context) -> pb.ModelConfigResponse:
        """The configuration, as far as load tools need it."""
        config = configuration(await self._host.reach(request.name, request.version or None))
        return pb.ModelConfigResponse(config=fill(config, model_config_pb2.ModelConfig()))

    @call("read")
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, _context: Context
    ) -> pb.ModelStatisticsResponse:
        """Cumulative statistics of one model, or of all."""
        models = [self._served(request.name, request.version)] if request.name else self._host.models()
        return fill({"model_stats": [statistics(served) for served in models]}, pb.ModelStatisticsResponse())

    @call("read")
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, _context: Context
    ) -> pb.RepositoryIndexResponse:
        """Every endpoint, loaded or not."""
        answer = pb.RepositoryIndexResponse()
        for item in await self._repository.index():
            if item.state == "READY" or not request.ready:
                answer.models.add(name=item.name, version=item.version, state=item.state, reason=item.reason or "")
        return answer

    @call("train")
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, _context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load an endpoint that was unloaded, or again."""
        if request.parameters:
            name = next(iter(request.parameters))
            raise NotBuilt(f"the parameter '{name}' is not in this release: models come from the registry")
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    @call("train")
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, _context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Free an endpoint's memory; it stays known."""
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    @call("predict")
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Answer one request, within the call's deadline and the request's `timeout`."""
        return await self._infer(request, context)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream in their order; several are under way at once. An error ends only its own."""
        try:
            await admit(self.auth, context, "predict")
        except AimassError as error:
            await refuse(context, error)
        waiting: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue(STREAM_WINDOW)

        async def take() -> None:
            async for request in requests:
                await waiting.put(asyncio.create_task(self._stream_one(request, context)))
            await waiting.put(None)

        reader = asyncio.create_task(take())
        try:
            while (answer := await waiting.get()) is not None:
                yield await answer
        finally:
            reader.cancel()
            while not waiting.empty():
                if left := waiting.get_nowait():
                    left.cancel()

    async def _stream_one(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelStreamInferResponse:
        final = request.parameters[_ASKS_FINAL].bool_param if _ASKS_FINAL in request.parameters else False
        request.parameters.pop(_ASKS_FINAL, None)
        try:
            answer = await self._infer(request, context)
        except Exception as error:  # noqa: BLE001 - each becomes the answer to its request
            told = error if isinstance(error, AimassError) else unexpected(error)
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=told.detail, infer_response=failed)
        if final:
            answer.parameters[_FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        started = time.perf_counter()
        name, version = request.model_name, request.model_version or None
        served = self._host.get(name, version)
        if served is None:
            left_s = context.time_remaining()
            deadline = math.inf if left_s is None else started + left_s
            served = await self._host.reach(name, version, deadline)
        with served:
            try:
                return await self._run(served, request, context, started)
            except Exception as error:
                code = error.code if isinstance(error, AimassError) else "internal"
                served.metrics.statuses[OIP_STATUS[code]] += 1
                raise

    async def _run(
        self, served: ServedModel, request: pb.ModelInferRequest, context: Context, started: float
    ) -> pb.ModelInferResponse:
        inline = bool(request.raw_input_contents) or request.ByteSize() <= INLINE_JSON_BYTES
        asked = read_infer(request, served.oip) if inline else await asyncio.to_thread(read_infer, request, served.oip)
        parsed = time.perf_counter()
        limits = [limit for limit in (asked.timeout_s, context.time_remaining()) if limit is not None]
        limit_s = min(limits) if limits else None
        deadline = math.inf if limit_s is None else started + limit_s
        answer = await within(limit_s, served.infer(asked.inputs, asked.rows, deadline, asked.priority))
        computed = time.perf_counter()
        message = write_infer(served.oip, answer.outputs, asked.outputs, served.version, asked.id)
        encoded_s = time.perf_counter() - computed
        # gRPC hands over a message that it has received: what that took is not known here.
        spans = (0.0, parsed - started, answer.queue_s, answer.batch_s, answer.compute_s, encoded_s)
        served.metrics.answered(*spans, cached=answer.cached)
        if self._exporter is not None:
            self._export(self._exporter, served, context, time.perf_counter() - started, spans)
        return message

    @staticmethod
    def _export(
        exporter: Exporter, served: ServedModel, context: Context, seconds: float, spans: tuple[float, ...]
    ) -> None:
        given = dict(context.invocation_metadata() or ()).get("traceparent", "")
        trace = continue_trace(given.encode() if isinstance(given, str) else given) or begin_trace(exporter)
        told = {"rpc.system": "grpc", "aimass.endpoint": served.source.endpoint, "aimass.model": served.source.model}
        told |= {"aimass.version": served.version, "aimass.variant": served.source.variant}
        phases = list(zip(PHASES, spans, strict=True))
        export(exporter, trace, "inference.GRPCInferenceService/ModelInfer", seconds, 200, told, phases)

    def _served(self, name: str, version: str) -> ServedModel:
        return self._host.lookup(name, version or None)

    async def _not_built(self, _request: Any, context: Context) -> None:  # noqa: ANN401 - any message
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "shared memory, trace and log calls are not in this release")

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _not_built
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _not_built
    TraceSetting = LogSettings = _not_built
