"""The gRPC server of one gateway process."""

import socket

import grpc

from app.core.errors import Misconfigured
from app.gateway.grpc.admission import Admission
from app.gateway.grpc.service import InferenceService
from app.gateway.grpc.stubs import service_pb2_grpc
from app.settings import GatewaySettings


def check_port(settings: GatewaySettings) -> None:
    """Misconfigured if the port is taken by something that does not share it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((settings.host, max(0, settings.grpc_port)))
        except OSError as error:
            raise Misconfigured(
                f"cannot listen on {settings.host}:{settings.grpc_port} "
                f"(AIMASS_GATEWAY_HOST, AIMASS_GATEWAY_GRPC_PORT): {error.strerror}"
            ) from None


class GrpcServer:
    """Listens from `start` to `stop`."""

    def __init__(self, service: InferenceService, settings: GatewaySettings, max_message: int) -> None:
        self._settings = settings
        service.answer_limit_s = settings.request_timeout_s
        places = max(1, service.bodies.most // max_message)
        self._server = grpc.aio.server(
            interceptors=[Admission(service, service.bodies, places, settings.request_timeout_s)],
            options=[
                ("grpc.max_receive_message_length", max_message),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),  # the gateway processes of one machine share the port
            ],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, self._server)

    async def start(self) -> int:
        """Listen; the port."""
        host, port = self._settings.host, self._settings.grpc_port
        bound: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Take no more calls; those under way have as long to end as HTTP's."""
        await self._server.stop(self._settings.drain_s)
