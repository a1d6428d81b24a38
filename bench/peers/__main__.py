"""The command line; see the package."""

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path

import psutil

from bench.load import Server, write_script
from bench.peers import setup
from bench.peers.bodies import Samples, v2
from bench.peers.cells import OUR_CELLS, Cell, Result, peer_cells
from bench.peers.check import WrongAnswer
from bench.peers.ours import deploy
from bench.peers.peer import Peer
from bench.peers.process import StartFailed, running
from bench.peers.report import report
from bench.peers.rounds import RawLimits, Target, measure, naive_target
from bench.peers.servers.common import INPUTS
from bench.product import gateway
from tests.support.platform import Platform

TWO = "ours-2"  # this platform with two gateway processes
PROTOTYPE = "prototype"  # measured when it is named
PEERS = ("kserve", "mlserver", "pytriton", "torchserve", "litserve", "bentoml", "mlflow", "ray")
RESULTS = setup.WORK / "results.jsonl"


def peer_named(name: str) -> Peer:
    """The peer that a module of this package describes."""
    peer: Peer = import_module(f"bench.peers.{name}").PEER
    return peer


class Benchmark:
    """One run: naive stays up, the others come and go beside it."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._rounds: int | None = arguments.rounds
        self._end = time.monotonic() + arguments.minutes * 60
        self._server_s = arguments.server_minutes * 60
        self._folder = folder
        write_script(folder)
        self._models = setup.models()
        self._samples = {model: Samples.read(self._models, model) for model in INPUTS}
        self._run, self._server = "", ""

    def all(self, names: list[str]) -> None:
        """Measure the servers in turn; what fails is noted and does not stop the rest."""
        for name in names:
            self._run, self._server = datetime.now().astimezone().isoformat(timespec="seconds"), name
            if time.monotonic() > self._end:
                self._note({"what": "failed", "why": "not measured: the time of the run was up"})
                continue
            try:
                with running(peer_named("naive"), self._models) as server:
                    naive = naive_target(server, self._samples, self._folder)
                    self._check(naive, [Cell(model, 1) for model in INPUTS])
                    if name == "ours":
                        self._ours(naive)
                    elif name == TWO:
                        self._two_gateways(naive)
                    else:
                        self._peer(peer_named(name), naive)
            except Exception as error:  # noqa: BLE001 - whatever a server does, the others are measured
                self._note({"what": "failed", "why": f"{type(error).__name__}: {error}"[:400]})

    def _peer(self, peer: Peer, naive: Target) -> None:
        until = min(self._end, time.monotonic() + self._server_s)
        for model in INPUTS if peer.one_model else [""]:
            with running(peer, self._models, model) as server:
                target = Target(
                    server, lambda cell: peer.path(cell.model), peer.form, self._samples, self._folder, peer.name
                )
                cells = self._check(target, peer_cells(binary=peer.binary, model=model))
                self._measure(target, naive, cells, until=until, rounds=self._rounds or 3)
                self._memory(target, naive, f", {model} alone" if model else "")

    def _ours(self, naive: Target) -> None:
        until = min(self._end, time.monotonic() + self._server_s)
        limits = RawLimits(self._models, self._samples)
        with Platform() as platform:
            for model in INPUTS:
                deploy(platform, model, self._models / f"{model}.onnx")
            target = Target(gateway(platform), _our_path, lambda _: v2, self._samples, self._folder, "ours")
            self._check(target, [cell for cell in OUR_CELLS if cell.precision == "fp32"])
            for model in INPUTS:
                for server in (naive, target):
                    server.load(Cell(model, 32))
            self._memory(target, naive)
            for model in ("cnn", "encoder"):
                deploy(platform, f"{model}-int8", self._models / f"{model}-int8.onnx")
            self._check(target, [cell for cell in OUR_CELLS if cell.precision == "int8"])
            for cell in OUR_CELLS:
                if cell.raw:
                    self._note({"what": "raw", "settings": limits.prepare(cell)}, cell)
            self._measure(target, naive, OUR_CELLS, until=until, rounds=self._rounds or 5, limits=limits)

    def _two_gateways(self, naive: Target) -> None:
        """The small model on two processes; the CPU time of all that the platform runs counts."""
        with Platform(AIMASS_GATEWAY_PROCESSES="2") as platform:
            gateways = len(platform.processes("app.gateway.main"))
            if platform.url is None or gateways != 2:
                raise StartFailed(f"{gateways} gateway processes instead of 2")
            deploy(platform, "mlp", self._models / "mlp.onnx")
            server = Server(platform.url, psutil.Process(platform.process.pid))
            target = Target(server, _our_path, lambda _: v2, self._samples, self._folder, TWO)
            cells = self._check(target, [Cell("mlp", 16), Cell("mlp", 64)])
            self._measure(target, naive, cells, until=self._end, rounds=self._rounds or 5)

    def _check(self, target: Target, cells: list[Cell]) -> list[Cell]:
        """Compare answers of each kind once; the cells whose answers are right."""
        good: dict[tuple[str, str, str], bool] = {}
        for cell in cells:
            key = cell.model, cell.form, cell.precision
            if key in good:
                continue
            try:
                checked = target.check(cell)
            except (WrongAnswer, OSError) as error:
                good[key] = False
                self._note({"what": "failed", "why": str(error)[:400]}, cell)
            else:
                good[key] = True
                self._note({"what": "checked", "of": target.name, **asdict(checked)}, cell)
        return [cell for cell in cells if good[cell.model, cell.form, cell.precision]]

    def _measure(
        self,
        target: Target,
        naive: Target,
        cells: list[Cell],
        *,
        until: float,
        rounds: int,
        limits: RawLimits | None = None,
    ) -> None:
        for cell, result in measure(target, naive, cells, rounds, until, limits):
            self._note(result, cell)

    def _memory(self, target: Target, naive: Target, note: str = "") -> None:
        used = {"pss_mb": target.server.pss_mb(), "naive_pss_mb": naive.server.pss_mb()}
        self._note({"what": "memory", "note": note, **used})

    def _note(self, result: Result, cell: Cell | None = None) -> None:
        """Append a line to the results, and show it."""
        line = {"run": self._run, "server": self._server, **result}
        if cell is not None:
            line |= {"cell": cell.name, **asdict(cell)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(_shown(line), flush=True)


def _our_path(cell: Cell) -> str:
    name = cell.model if cell.precision == "fp32" else f"{cell.model}-{cell.precision}"
    return f"/v2/models/{name}/infer"


def _shown(line: Result) -> str:
    start = f"{line['server']:11}{line['what']:8}{line.get('cell', ''):20}"
    match line["what"]:
        case "cell":
            raw = f", raw {line['raw_rps']:.0f}/s" if "raw_rps" in line else ""
            return (
                f"{start}{line['rps']:8.0f}/s  p50 {line['p50']:.2f}  p99 {line['p99']:.2f} ms, "
                f"{line['rps'] / line['naive_rps']:.2f} of naive's {line['naive_rps']:.0f}/s{raw}, "
                f"others {line['others']:.2f} cores"
            )
        case "checked":
            return f"{start}{line['answers']} answers of {line['of']}, largest difference {line['worst']:.1g}"
        case "memory":
            return f"{start}{line['pss_mb']:.0f} MiB, naive {line['naive_pss_mb']:.0f}{line['note']}"
        case "raw":
            return f"{start}best with (threads, runs at once, rows) {line['settings']}"
        case _:
            return f"{start}{line['why']}"


def main() -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    known = ["ours", TWO, PROTOTYPE, "naive", *PEERS]
    parser.add_argument(
        "servers", nargs="*", metavar="SERVER", help=f"of {', '.join(known)}; all without, but the prototype"
    )
    parser.add_argument("--rounds", type=int, help="5 of ours, 3 of a peer")
    parser.add_argument("--minutes", type=float, default=60, help="no server is started after this")
    parser.add_argument(
        "--server-minutes", type=float, default=12, help="of one server; no cell begins after it, but of round 1"
    )
    parser.add_argument("--report", action="store_true", help="print the tables of the newest results and do nothing")
    arguments = parser.parse_args()
    names = arguments.servers or ["ours", TWO, *PEERS]
    if unknown := set(names) - set(known):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that what was started is stopped
    if not arguments.report:
        setup.WORK.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            Benchmark(arguments, Path(folder)).all(names)
    print(report(RESULTS))


if __name__ == "__main__":
    main()
