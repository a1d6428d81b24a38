"""Several processes of this machine that learn one network, each from its share of every batch (DDP).

The job's own process does not learn: it starts the ranks, repeats what rank 0 tells, and ends them all when one fails,
dies, or the job is to stop. So whatever a rank hangs in, the job does not.
"""

import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.core.errors import Crashed, InvalidInput, InvalidSpec, JobError
from app.specs.training import TrainingSpec
from workers.context import Events, JobContext, Stopped
from workers.training.batches import Change, Rank, Source, Tensors

_GLANCE_S = 0.2  # between looks at whether the job is to stop
_SETTLE_S = 1.0  # after a failure, for other ranks to say what is the matter
# The first of these says why; after it, other ranks fail since one is missing.
_TELLING = (torch.OutOfMemoryError, MemoryError, InvalidInput, Crashed)
_FOLDER, _TENSORS, _WEIGHTS, _STORE = "ranks", "tensors.pt", "weights.pt", "store"
_NO_ROWS = Tensors((), torch.empty(0))


@dataclass(frozen=True, slots=True)
class Fit:
    """What one run of the loop learns, and from what; `evaluation` is the number of rows of a validation batch."""

    network: nn.Module
    loss: nn.Module
    data: Source
    validation: Tensors
    spec: TrainingSpec
    device: str
    change: Change | None
    evaluation: int


Run = Callable[[Fit, JobContext, Rank], dict[str, Any]]
About = tuple[str, str, int, dict[str, Any], Path]  # a job's id, kind, attempt, spec and folder


def on_ranks(run: Run, fit: Fit, job: JobContext, threads: int) -> dict[str, Any]:
    """`run` in `fit.spec.devices` processes; the network here gets what rank 0 has learnt, and so its facts.

    Args:
        run: a function of a module, which trains the network in place and is the same on every rank.
        fit: rows that are streamed cannot be shared.
        job: is told what rank 0 tells.
        threads: of all ranks together on a CPU.

    Raises:
        InvalidSpec: the rows are streamed, or fewer than the ranks; or as `run`.
        Crashed: a rank was killed.
        Stopped: the job is to stop; its checkpoint is as whole as the last that a rank wrote.
        OutOfMemoryError: of a rank's device.
    """
    rows, size = _rows_in_memory(fit), fit.spec.devices
    each = max(1, threads // size)
    job.log(f"{size} processes share every batch" + (f", {each} threads each" if fit.device == "cpu" else ""))
    folder = job.folder / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        learn, watch = ([*part.inputs, part.y] for part in (rows, fit.validation))
        torch.save({"network": _values(fit), "rows": learn, "validation": watch}, folder / _TENSORS)
        crew = _Crew(job)
        stack.callback(crew.end)
        with _bare(fit):
            plan = replace(fit, data=_NO_ROWS, validation=_NO_ROWS)
            for number in range(size):
                crew.start(run, plan, Rank(number, size), each)
        facts = crew.follow()
        weights = torch.load(folder / _WEIGHTS, weights_only=True)
    for name, tensor in _tensors(fit).items():
        tensor.data = weights[name]
    fit.network.eval()
    return facts


def _rows_in_memory(fit: Fit) -> Tensors:
    if not isinstance(fit.data, Tensors):
        msg = "the table is larger than memory, and its rows go to one device; raise resources.memory_mb, or take 1"
        raise InvalidSpec.at("training", "devices", msg=msg)
    least = min(len(fit.data), len(fit.validation))
    if least < fit.spec.devices:
        msg = f"there are {len(fit.data)} training and {len(fit.validation)} validation rows; take at most {least}"
        raise InvalidSpec.at("training", "devices", msg=msg)
    return fit.data


def _tensors(fit: Fit) -> dict[str, Tensor]:
    """All weights and buffers of network and loss, each once."""
    both = nn.ModuleList([fit.network, fit.loss])
    return dict(chain(both.named_parameters(), both.named_buffers()))


def _values(fit: Fit) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in _tensors(fit).items()}


@contextmanager
def _bare(fit: Fit) -> Iterator[None]:
    """Within, weights are empty: they reach the ranks by a file, as shared memory is small in a container."""
    tensors = _tensors(fit)
    kept = {name: tensor.data for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.data = tensor.data.new_empty(0)
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.data = kept[name]


class _Crew:
    """The processes of all ranks, and a pipe from each."""

    def __init__(self, job: JobContext) -> None:
        self.job = job
        self.processes: dict[Connection, BaseProcess] = {}
        self.facts: dict[str, Any] = {}
        self.failures: list[BaseException] = []
        # Ranks are forked from a server that has imported torch, and neither started a thread nor touched a GPU.
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["lightning.pytorch", "workers.training.loop"])
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the server reads it when it starts

    def start(self, run: Run, plan: Fit, rank: Rank, threads: int) -> None:
        """One process."""
        heard, said = self.context.Pipe(duplex=False)
        job = self.job
        about = (job.id, job.kind, job.attempt, dict(job.spec), job.folder)
        process = self.context.Process(
            target=_be_rank, args=(run, plan, about, rank, threads, said), name=f"rank {rank.number}"
        )
        process.start()
        self.processes[heard] = process
        said.close()  # so that the end of the rank is the end of the pipe

    def follow(self) -> dict[str, Any]:
        """Repeat what rank 0 tells until all are done; its facts. Raises what a rank failed by, or Stopped."""
        speaking = set(self.processes)
        while speaking:
            ready = wait(speaking, _SETTLE_S if self.failures else _GLANCE_S)
            if self.job.should_stop():
                raise Stopped
            if self.failures and not ready:
                break
            speaking -= {pipe for pipe in speaking.intersection(ready) if self._is_last(pipe)}
        for kind in (*_TELLING, BaseException) if self.failures else ():
            for failure in self.failures:
                if isinstance(failure, kind):
                    raise failure
        return self.facts

    def _is_last(self, pipe: Connection) -> bool:
        """Take one message; whether the rank says no more."""
        try:
            name, *values = pipe.recv()
        except EOFError:
            name, values = "failed", [_ended(self.processes[pipe])]
        match name:
            case "done":
                self.facts = values[0] or self.facts
            case "failed":
                self.failures.append(values[0])
            case _:
                getattr(self.job, name)(*values)
        return name in {"done", "failed"}

    def end(self) -> None:
        """Kill those that are left."""
        for pipe, process in self.processes.items():
            pipe.close()
            process.kill()
            process.join()
            process.close()


def _ended(process: BaseProcess) -> Crashed:
    process.join(_SETTLE_S)
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    return Crashed(f"{process.name} of the training's processes {how}")


class _RankContext(JobContext):
    """The job as a rank sees it. Rank 0 tells the job's process; others are silent. To stop, ranks are killed."""

    def __init__(self, about: About, pipe: Connection, rank: Rank) -> None:
        super().__init__(*about, Events(os.open(os.devnull, os.O_WRONLY)))
        self._pipe = None if rank.number else pipe

    def _tell(self, name: str, *values: object) -> None:
        if self._pipe is not None:
            self._pipe.send((name, *values))

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:
        """As the job's."""
        self._tell("progress", fraction, step, eta_s)

    def metric(self, name: str, step: int, value: float) -> None:
        """As the job's."""
        self._tell("metric", name, step, value)

    def log(self, message: str, level: str = "info") -> None:
        """As the job's."""
        self._tell("log", message, level)

    def checkpointed(self) -> None:
        """As the job's."""
        self._tell("checkpointed")


def _be_rank(run: Run, plan: Fit, about: About, rank: Rank, threads: int, pipe: Connection) -> None:
    """The main function of a rank."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # they are for the job's process
    threading.Thread(target=_end_with_parent, name="watch-parent", daemon=True).start()
    folder = about[-1] / _FOLDER
    try:
        _join(plan.device, rank, threads, folder / _STORE)
        stored = torch.load(folder / _TENSORS, mmap=True, weights_only=True)  # pages that all ranks share
        for name, tensor in _tensors(plan).items():
            tensor.data = stored["network"][name].clone()
        learn, watch = (Tensors(tuple(part[:-1]), part[-1]) for part in (stored["rows"], stored["validation"]))
        facts = run(replace(plan, data=learn, validation=watch), _RankContext(about, pipe, rank), rank)
        if not rank.number:
            torch.save(_values(plan), folder / _WEIGHTS)
        dist.destroy_process_group()
        pipe.send(("done", None if rank.number else facts))
    except (InvalidInput, MemoryError, torch.OutOfMemoryError) as error:
        pipe.send(("failed", error))
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the job's answer
        pipe.send(("failed", JobError(f"{type(error).__name__}: {error}"[:2000])))
        traceback.print_exc()
    finally:
        pipe.close()


def _join(device: str, rank: Rank, threads: int, store: Path) -> None:
    """Meet the other ranks by a file, so that no port is needed, and talk over the loopback interface."""
    os.environ |= {"RANK": str(rank.number), "LOCAL_RANK": str(rank.number), "WORLD_SIZE": str(rank.size)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.cuda.set_device(rank.number)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank.number, world_size=rank.size)


def _end_with_parent() -> None:
    """A rank's parent in the kernel's eyes is the server that forked it, so the kernel cannot tell."""
    if (parent := parent_process()) is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
