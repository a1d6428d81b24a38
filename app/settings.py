"""Every setting, in small groups; each is an environment variable `AIMASS_<GROUP>_<NAME>`, listed in the README."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _prefix(prefix: str) -> SettingsConfigDict:
    return SettingsConfigDict(env_prefix=prefix, extra="forbid", frozen=True, validate_default=True)


class DatabaseSettings(BaseSettings):
    """The registry."""

    model_config = _prefix("AIMASS_DATABASE_")
    url: Annotated[str, Field(description="`sqlite:///FILE` or `postgresql://…`; empty: SQLite in the data folder")] = (
        ""
    )
    pool_size: Annotated[int, Field(ge=1, le=200, description="connections a process keeps to PostgreSQL")] = 10
    lock_timeout_s: Annotated[
        float, Field(gt=0, description="longest wait for a lock, or for a free connection, before the statement fails")
    ] = 10.0
    timeout_s: Annotated[
        float, Field(gt=0, description="longest wait for PostgreSQL's answer to a statement before it counts as away")
    ] = 30.0


class RedisSettings(BaseSettings):
    """Wake-ups, cancels and live events; losing it loses no job."""

    model_config = _prefix("AIMASS_REDIS_")
    url: Annotated[
        str, Field(description="`redis://…` or `unix://…`; empty: an embedded server in the data folder")
    ] = ""
    timeout_s: Annotated[
        float, Field(gt=0, description="of one command; short, so that a dead server cannot hold up a heartbeat")
    ] = 3.0


class StoreSettings(BaseSettings):
    """Files of data sets and models."""

    model_config = _prefix("AIMASS_STORE_")
    url: Annotated[
        str, Field(description="`file:///FOLDER` or `s3://BUCKET/PREFIX`; empty: a folder in the data folder")
    ] = ""
    s3_endpoint: Annotated[str, Field(description="of an S3-compatible server; empty: AWS")] = ""
    s3_region: Annotated[str, Field(description="of the bucket")] = "us-east-1"


class SigningSettings(BaseSettings):
    """Ed25519 signatures of model versions: every machine that makes or serves them needs the key."""

    model_config = _prefix("AIMASS_SIGNING_")
    key_file: Annotated[
        str, Field(description="private key (PEM) that signs model versions; empty: made in the data folder")
    ] = ""
    trusted_keys: Annotated[
        str, Field(description="further public keys (base64, comma-separated) whose versions are served")
    ] = ""

    def trusted(self) -> list[str]:
        """The further public keys."""
        return [key.strip() for key in self.trusted_keys.split(",") if key.strip()]


class GatewaySettings(BaseSettings):
    """The HTTP server."""

    model_config = _prefix("AIMASS_GATEWAY_")
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0: any free port")] = 8000
    grpc_port: Annotated[
        int, Field(ge=-1, le=65535, description="of the Open Inference Protocol by gRPC; 0: any free port, -1: none")
    ] = 8001
    max_upload_mb: Annotated[int, Field(ge=1, description="largest data set upload, MiB")] = 8192
    max_body_mb: Annotated[int, Field(ge=1, description="largest JSON body of the REST API, MiB")] = 4
    drain_s: Annotated[float, Field(ge=0, description="time that open requests have to end at shutdown")] = 10.0
    processes: Annotated[int, Field(ge=1, le=256, description="gateway processes of `aimass up`, on one port")] = 1
    follow_s: Annotated[
        float, Field(ge=0, description="longest that a change of an endpoint waits for the other gateway processes")
    ] = 10.0
    request_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="time to send the head of a request, then each 64 KiB of its body, before 408; "
            "and to take each 64 KiB of an answer",
        ),
    ] = 30.0


class ServingSettings(BaseSettings):
    """ONNX Runtime inside the gateway."""

    model_config = _prefix("AIMASS_SERVING_")
    max_body_mb: Annotated[int, Field(ge=1, description="largest prediction request, MiB")] = 64
    max_batch: Annotated[int, Field(ge=1, description="most rows of one run; an endpoint may set its own")] = 64
    max_queue: Annotated[
        int, Field(ge=1, description="rows that may wait per endpoint before 429; an endpoint may set its own")
    ] = 2048
    threads: Annotated[
        int,
        Field(
            ge=0, description="cores for all models together; 0: all that this process may use, or its share of them"
        ),
    ] = 0
    poll_s: Annotated[
        float, Field(gt=0, description="how often endpoints are compared with the registry, should a notice be lost")
    ] = 2.0
    memory_mb: Annotated[
        int, Field(ge=0, description="memory for models, MiB: idle ones sleep when it is full; 0: no budget")
    ] = 0
    provider: Annotated[
        str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="`cpu` or `cuda:N`: what ONNX Runtime runs models on")
    ] = "cpu"
    arena: Annotated[
        bool, Field(description="keep a model's work memory between runs, rather than ask for it anew")
    ] = True
    run_limit_s: Annotated[float, Field(gt=0, description="a run of a model that takes longer is ended")] = 30.0
    prove_s: Annotated[
        float, Field(gt=0, description="a model that has not answered for so long is proven on its golden rows")
    ] = 30.0


class TelemetrySettings(BaseSettings):
    """Spans of requests, for a collector of OpenTelemetry."""

    model_config = _prefix("AIMASS_TELEMETRY_")
    otlp_url: Annotated[
        str, Field(pattern="^(https?://.+)?$", description="collector (OTLP by HTTP): `http://HOST:4318`; empty: none")
    ] = ""
    otlp_timeout_s: Annotated[float, Field(gt=0, description="of one export; what cannot be sent is dropped")] = 5.0
    trace_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of the traces that begin here; callers decide over their own")
    ] = 1.0


class QueueSettings(BaseSettings):
    """Leases and retries of jobs, and how long they are kept."""

    model_config = _prefix("AIMASS_QUEUE_")
    lease_s: Annotated[
        float, Field(gt=0, description="a worker that is silent for this long loses its job; the heartbeat is a third")
    ] = 30.0
    max_attempts: Annotated[int, Field(ge=1, description="runs of a job whose process crashes")] = 3
    backoff_s: Annotated[float, Field(ge=0, description="wait before the second run; doubles with each")] = 5.0
    repush_s: Annotated[
        float, Field(gt=0, description="a queued job that nobody took is announced again after this")
    ] = 30.0
    reconcile_s: Annotated[
        float, Field(gt=0, description="how often expired leases and forgotten jobs are looked for")
    ] = 5.0
    keep_days: Annotated[
        float, Field(ge=0, description="days that ended jobs are kept, with their logs and curves; 0: for ever")
    ] = 0.0


class WorkerSettings(BaseSettings):
    """The worker agent."""

    model_config = _prefix("AIMASS_WORKER_")
    device: Annotated[
        str,
        Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="`cpu`, `cuda` or `cuda:N`: what this agent's jobs run on"),
    ] = "cpu"
    grace_s: Annotated[float, Field(ge=0, description="time from SIGTERM to SIGKILL, for a checkpoint")] = 30.0
    spare: Annotated[bool, Field(description="keep one child ready that has imported torch")] = True
    threads: Annotated[int, Field(ge=0, description="cores for one job; 0: all that this process may use")] = 0
    weights: Annotated[
        str, Field(description="folder of published weights that jobs may fine-tune, as safetensors; empty: none")
    ] = ""


class LimitSettings(BaseSettings):
    """Bounds on what comes from outside."""

    model_config = _prefix("AIMASS_LIMIT_")
    columns: Annotated[int, Field(ge=1, description="columns of a table")] = 10_000
    unpacked_mb: Annotated[int, Field(ge=1, description="size of an upload once unpacked, MiB")] = 16_384
    unpack_ratio: Annotated[int, Field(ge=2, description="unpacked size over packed size, above 1 MiB")] = 200
    archive_members: Annotated[int, Field(ge=1, description="files in an archive")] = 2_000_000
    image_megapixels: Annotated[float, Field(gt=0, description="size of one picture, in data and predictions")] = 50.0
    line_mb: Annotated[int, Field(ge=1, description="longest line, and text file of an archive, MiB")] = 8
    bodies_mb: Annotated[
        int,
        Field(
            ge=1,
            description="prediction bodies that one gateway process holds and decodes at once, MiB; above, 429; "
            "a quarter as much for the rest of the API",
        ),
    ] = 1024
    answer_mb: Annotated[
        int, Field(ge=1, le=2047, description="largest answer to a prediction, MiB, as tensors and as JSON; above, 413")
    ] = 256
    ingest_memory_mb: Annotated[int, Field(ge=256, description="memory of the process that parses an upload, MiB")] = (
        4096
    )
    import_memory_mb: Annotated[
        int, Field(ge=256, description="memory of the process that checks an imported model, MiB")
    ] = 8192
    import_timeout_s: Annotated[float, Field(gt=0, description="time that checking an imported model may take")] = 600.0


class SourceSettings(BaseSettings):
    """Data that workers fetch from an address, rather than that it is uploaded."""

    model_config = _prefix("AIMASS_SOURCES_")
    allow: Annotated[
        str,
        Field(description="where data may be fetched from: `https://HOST/PATH,s3://BUCKET/PREFIX`; empty: nowhere"),
    ] = ""
    networks: Annotated[
        str, Field(description="private networks that listed hosts may be in, such as `10.0.0.0/8`; empty: none")
    ] = ""
    timeout_s: Annotated[float, Field(gt=0, description="time that fetching one source may take")] = 3600.0
    s3_endpoint: Annotated[str, Field(description="of an S3-compatible server with sources; empty: AWS")] = ""
    s3_region: Annotated[str, Field(description="of the buckets with sources")] = "us-east-1"
    s3_access_key_id: Annotated[
        str, Field(description="key that may read the buckets with sources; empty: as AWS tools find it")
    ] = ""
    s3_secret_access_key: Annotated[SecretStr, Field(description="secret of that key")] = SecretStr("")


class Settings(BaseSettings):
    """All groups, and what they share."""

    model_config = SettingsConfigDict(env_prefix="AIMASS_", extra="ignore", frozen=True, validate_default=True)
    data_dir: Annotated[Path, Field(description="everything that the platform keeps on this machine")] = Path(".data")
    log_level: Annotated[
        str, Field(pattern="^(debug|info|warning|error)$", description="least severe line that is logged")
    ] = "info"
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    signing: SigningSettings = Field(default_factory=SigningSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    limit: LimitSettings = Field(default_factory=LimitSettings)
    sources: SourceSettings = Field(default_factory=SourceSettings)

    @property
    def database_url(self) -> str:
        """The registry's address, with the embedded default filled in."""
        return self.database.url or f"sqlite:///{self.data_dir.resolve() / 'registry.db'}"

    @property
    def redis_url(self) -> str:
        """Redis's address, with the embedded default filled in."""
        return self.redis.url or f"unix://{self.data_dir.resolve() / 'redis.sock'}"

    @property
    def store_url(self) -> str:
        """The store's address, with the embedded default filled in."""
        return self.store.url or f"file://{self.data_dir.resolve() / 'store'}"

    @property
    def signing_key_file(self) -> Path:
        """Where the signing key is, with the embedded default filled in."""
        return Path(self.signing.key_file) if self.signing.key_file else self.data_dir.resolve() / "signing.key"

    def gateway_socket(self, number: int) -> Path:
        """Where the launcher's gateway process of this number alone answers, whoever else shares its port."""
        return self.data_dir.resolve() / f"gateway-{number}.sock"


def describe() -> list[tuple[str, str, str]]:
    """(variable, default, description) of every setting, in order, for the README and `aimass settings`."""
    rows: list[tuple[str, str, str]] = []
    for name, field in Settings.model_fields.items():
        group = field.default_factory
        if isinstance(group, type) and issubclass(group, BaseSettings):
            prefix = group.model_config.get("env_prefix", "")
            rows += [
                (f"{prefix}{key}".upper(), _text(f.default), f.description or "")
                for key, f in group.model_fields.items()
            ]
        else:
            rows.append((f"AIMASS_{name}".upper(), _text(field.default), field.description or ""))
    return rows


def _text(value: Any) -> str:  # noqa: ANN401 - a default of any type
    return "" if value == "" else str(value)
