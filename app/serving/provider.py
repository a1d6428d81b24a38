"""Where ONNX Runtime runs models, by configuration: the execution provider, its options and the memory arena."""

from dataclasses import dataclass, field
from typing import Any, Self

import onnxruntime as ort

from app.core.errors import Misconfigured
from app.core.host import number_of, serving_class
from app.serving.fusions import leave_slow_fusions_out
from app.settings import ServingSettings

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def lacks_cuda() -> str | None:
    """What the installed ONNX Runtime has in place of CUDA, and the remedy; None if it has CUDA."""
    available = ort.get_available_providers()
    if _CUDA in available:
        return None
    return (
        f"the installed onnxruntime {ort.__version__} has no {_CUDA} (it has {', '.join(available)}); install "
        "onnxruntime-gpu in its place"
    )


@dataclass(frozen=True, slots=True)
class Provider:
    """`chain` is what `onnxruntime.InferenceSession` takes as `providers`."""

    chain: list[Any] = field(default_factory=lambda: [_CPU])
    arena: bool = True

    @classmethod
    def of(cls, settings: ServingSettings) -> Self:
        """The configured one; Misconfigured if the installed ONNX Runtime, or the machine, does not have it."""
        if settings.provider == "cpu":
            return cls(arena=settings.arena)
        if (why := lacks_cuda()) is not None:
            raise Misconfigured(f"AIMASS_SERVING_PROVIDER={settings.provider}: {why}, or set it to cpu")
        serving_class(settings.provider)  # variants are chosen by it
        return cls.on_gpu(settings.provider, arena=settings.arena)

    @classmethod
    def on_gpu(cls, device: str, *, arena: bool = True) -> Self:
        """That of `cuda:N`, where this ONNX Runtime has CUDA; `cuda` alone is the first GPU."""
        ort.preload_dlls()  # CUDA's libraries may be packages of this environment, which the loader does not look in
        options = {
            "device_id": str(number_of(device)),
            # The default tries every algorithm at each new shape: seconds at the first batch of every size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The default rounds the factors of float32 products to 10 bits: answers would differ from what was proven.
            "use_tf32": "0",
            # The default doubles the arena at each growth, and so holds up to twice of what the model needs.
            "arena_extend_strategy": "kSameAsRequested",
        }
        return cls([(_CUDA, options), _CPU], arena)

    @property
    def on_cpu(self) -> bool:
        """True if no other provider comes first."""
        return bool(self.chain[0] == _CPU)

    @property
    def arenas(self) -> str:
        """What `memory.enable_memory_arena_shrinkage` takes."""
        return "cpu:0" if self.on_cpu else f"cpu:0;gpu:{self.chain[0][1]['device_id']}"

    def fell_back(self, session: ort.InferenceSession) -> str | None:
        """Why ONNX Runtime runs it on the CPU instead, with a log line alone, and the remedy; None if it does not."""
        if self.on_cpu or session.get_providers()[0] != _CPU:
            return None
        return (
            "ONNX Runtime could not start CUDA and would run on the CPU; onnxruntime-gpu "
            f"{ort.__version__} is made for CUDA {ort.cuda_version}: check the driver and install its libraries "
            "(pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )

    def check(self, session: ort.InferenceSession) -> None:
        """Misconfigured if ONNX Runtime fell back to the CPU."""
        if (why := self.fell_back(session)) is not None:
            raise Misconfigured(f"AIMASS_SERVING_PROVIDER: {why}, or set it to cpu")

    def session_options(self, threads: int, *, packed: bool = False) -> ort.SessionOptions:
        """Options of a session whose runs use `threads` cores; `packed`: of a model of `app.serving.packed`."""
        options = ort.SessionOptions()
        if packed:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.on_cpu:
            leave_slow_fusions_out(options)
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = self.arena
        options.log_severity_level = 3  # errors only
        # A run on all cores has no lane beside it, and ends sooner if its threads are awake; they stand behind the
        # event loop as lanes do. Once it has ended they would spin on for some 20 ms, on a core that others need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options
