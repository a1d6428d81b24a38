"""GRPCInferenceService: the Open Inference Protocol's calls over gRPC."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from app.core.errors import AimassError, Malformed, NotBuilt
from app.gateway.grpc.calls import Call, Context, admit, call, needs, observed, status_of, turn_away
from app.gateway.grpc.messages import fill, read_infer, write_infer, write_large
from app.gateway.grpc.spans import export
from app.gateway.grpc.stream import InferStream
from app.gateway.grpc.stubs import model_config_pb2, service_pb2_grpc
from app.gateway.grpc.stubs import service_pb2 as pb
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.exchange import OIP_STATUS
from app.gateway.predict.ports import Authenticator, Repository
from app.gateway.predict.watching import within
from app.serving.describe import SERVER, configuration, statistics
from app.serving.effort import are_small
from app.serving.host import Host, ServedModel
from app.serving.tensors import INLINE_JSON_BYTES
from app.serving.waiting import FIRST_PRIORITY
from app.telemetry.metrics import CLIENT_GONE
from app.telemetry.spans import Exporter

_STREAM = "ModelStreamInfer"
_FINAL, _ASKS_FINAL = "triton_final_response", "triton_enable_empty_final_response"


def _later(name: str) -> Callable[[Any, Any, Context], Awaitable[None]]:
    """A call of the protocol that this release does not have."""

    async def method(_self: object, _request: Any, _call: Call) -> None:  # noqa: ANN401 - any message
        raise NotBuilt("shared memory, trace and log calls are not in this release")

    method.__name__ = name
    return call(None)(method)


def _failed(request: pb.ModelInferRequest, error: AimassError) -> pb.ModelStreamInferResponse:
    """What a stream answers to a request that has failed."""
    failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    return pb.ModelStreamInferResponse(error_message=error.detail, infer_response=failed)


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # the stubs have no types
    """Answers every call from the models of this process; keys and messages have passed its server's Admission.

    `answer_limit_s`: how long the client of a stream may take for one answer, None: any time. The server sets it.
    """

    def __init__(
        self,
        host: Host,
        auth: Authenticator,
        repository: Repository,
        bodies: Bodies,
        exporter: Exporter | None = None,
    ) -> None:
        self.auth = auth
        self.bodies = bodies
        self.answer_limit_s: float | None = None
        self._exporter = exporter
        self._host = host
        self._repository = repository

    @call(None)
    async def ServerLive(self, _request: pb.ServerLiveRequest, _call: Call) -> pb.ServerLiveResponse:
        """True while this process answers."""
        return pb.ServerLiveResponse(live=True)

    @call(None)
    async def ServerReady(self, _request: pb.ServerReadyRequest, _call: Call) -> pb.ServerReadyResponse:
        """True if at least one model can answer."""
        return pb.ServerReadyResponse(ready=self._host.ready())

    @call("read")
    async def ModelReady(self, request: pb.ModelReadyRequest, _call: Call) -> pb.ModelReadyResponse:
        """True if the model can answer; an unknown one is not ready."""
        try:
            self._host.check(request.name, request.version or None)
        except AimassError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    @call("read")
    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _call: Call) -> pb.ServerMetadataResponse:
        """Name, version and extensions."""
        return fill(SERVER, pb.ServerMetadataResponse())

    @call("read")
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _call: Call) -> pb.ModelMetadataResponse:
        """Tensors and versions of a model."""
        about = self._host.about(request.name, request.version or None)
        return fill(about.oip.metadata([about.version]), pb.ModelMetadataResponse())

    @call("read")
    async def ModelConfig(self, request: pb.ModelConfigRequest, _call: Call) -> pb.ModelConfigResponse:
        """The configuration, as far as load tools need it."""
        config = configuration(self._host.about(request.name, request.version or None))
        return pb.ModelConfigResponse(config=fill(config, model_config_pb2.ModelConfig()))

    @call("read")
    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, _call: Call) -> pb.ModelStatisticsResponse:
        """Cumulative statistics of one model, or of all."""
        host, name = self._host, request.name
        models = [host.about(name, request.version or None)] if name else host.described()
        return fill({"model_stats": [statistics(about) for about in models]}, pb.ModelStatisticsResponse())

    @call("read")
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, _call: Call) -> pb.RepositoryIndexResponse:
        """Every endpoint, loaded or not."""
        answer = pb.RepositoryIndexResponse()
        for item in await self._repository.index():
            if item.state == "READY" or not request.ready:
                answer.models.add(name=item.name, version=item.version, state=item.state, reason=item.reason or "")
        return answer

    @call("train")
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, _call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Load an endpoint that was unloaded, or again."""
        if request.parameters:
            name = next(iter(request.parameters))
            raise NotBuilt(f"the parameter '{name}' is not in this release: models come from the registry")
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    @call("train")
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, _call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Free an endpoint's memory; it stays known."""
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    @call("predict")
    async def ModelInfer(self, request: pb.ModelInferRequest, made: Call) -> pb.ModelInferResponse:
        """Answer one request, within the call's deadline and the request's `timeout`."""
        return await self._infer(request, made)

    @needs("predict")
    async def ModelStreamInfer(self, _requests: object, context: Context) -> None:
        """Answer the requests of a stream in their order; several are under way at once. An error ends only its own.

        What cannot be decoded ends the stream, and so does a client that does not take its answers.
        """
        stream = Call(context, _STREAM)
        try:
            stream.deadline()  # what the metadata has for each request must be right before the first
        except Malformed as error:
            turn_away(self, stream, error)
            return
        # By themselves: with a first answer that nobody takes they would not be sent, and no status after them.
        await context.send_initial_metadata(())
        answer, refused = partial(self._stream_one, context), partial(self._stream_refused, context)
        failed = await InferStream(context, self.bodies, self.answer_limit_s, answer, refused).run()
        if failed is not None:
            turn_away(self, stream, failed)

    async def _stream_one(self, context: Context, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        final = request.parameters[_ASKS_FINAL].bool_param if _ASKS_FINAL in request.parameters else False
        request.parameters.pop(_ASKS_FINAL, None)
        made = Call(context, _STREAM)
        try:
            answer = await observed(self, made, self._admitted(request, made))
        except AimassError as error:
            return _failed(request, error)
        if final:
            answer.parameters[_FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    def _stream_refused(
        self, context: Context, request: pb.ModelInferRequest, error: AimassError
    ) -> pb.ModelStreamInferResponse:
        self.ended(Call(context, _STREAM), status_of(error), error)
        return _failed(request, error)

    async def _admitted(self, request: pb.ModelInferRequest, made: Call) -> pb.ModelInferResponse:
        await admit(self.auth, made, "predict")  # again: a stream may be open for longer than its key is good
        return await self._infer(request, made)

    async def _infer(self, request: pb.ModelInferRequest, made: Call) -> pb.ModelInferResponse:
        name, version, deadline = request.model_name, request.model_version or None, made.deadline()
        served = self._host.get(name, version) or await self._host.reach(name, version, deadline)
        with served:
            made.served = served
            return await self._run(served, request, made, deadline)

    @staticmethod
    async def _run(
        served: ServedModel, request: pb.ModelInferRequest, made: Call, deadline: float
    ) -> pb.ModelInferResponse:
        served.check_room(deadline, FIRST_PRIORITY if "priority" in request.parameters else 0)
        oip = served.oip
        # Raw tensors become arrays in no time, but for some datatypes.
        most = min(INLINE_JSON_BYTES, oip.inline_raw_bytes) if request.raw_input_contents else INLINE_JSON_BYTES
        quick = (request.raw_input_contents and oip.inline_raw_bytes == math.inf) or request.ByteSize() <= most
        asked = read_infer(request, oip) if quick else await asyncio.to_thread(read_infer, request, oip)
        parsed = time.perf_counter()
        if asked.timeout_s is not None:
            deadline = min(deadline, made.started + asked.timeout_s)
        left_s = None if deadline == math.inf else max(0.0, deadline - parsed)
        answer = await within(left_s, served.infer(asked.inputs, asked.rows, deadline, asked.priority))
        computed = time.perf_counter()
        written = (oip, answer.outputs, asked.outputs, served.version, asked.id)
        if asked.rows <= oip.inline_rows or are_small(answer.outputs, asked.outputs, raw=True):
            message = write_infer(*written)
        else:
            message = await asyncio.to_thread(write_large, *written)
        encoded_s = time.perf_counter() - computed
        # gRPC hands over a message that it has received: what that took is not known here.
        made.phases = (0.0, parsed - made.started, answer.queue_s, answer.batch_s, answer.compute_s, encoded_s)
        served.metrics.answered(*made.phases, cached=answer.cached)
        return message

    def ended(self, made: Call, status: grpc.StatusCode, error: AimassError | None = None) -> None:
        """Count a refusal, or a client that has gone, as over HTTP, and export the call as a span."""
        gone = status is grpc.StatusCode.CANCELLED
        if gone or error is not None:
            code = "client_gone" if error is None else error.code
            if made.served is not None:
                made.served.metrics.statuses[CLIENT_GONE if error is None else OIP_STATUS[code]] += 1
            else:
                self._host.metrics.refused[code] += 1
        if self._exporter is not None:
            export(self._exporter, made, status)

    SystemSharedMemoryStatus = _later("SystemSharedMemoryStatus")
    SystemSharedMemoryRegister = _later("SystemSharedMemoryRegister")
    SystemSharedMemoryUnregister = _later("SystemSharedMemoryUnregister")
    CudaSharedMemoryStatus = _later("CudaSharedMemoryStatus")
    CudaSharedMemoryRegister = _later("CudaSharedMemoryRegister")
    CudaSharedMemoryUnregister = _later("CudaSharedMemoryUnregister")
    TraceSetting, LogSettings = _later("TraceSetting"), _later("LogSettings")
