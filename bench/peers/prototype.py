"""The bare handler of `../shared/bench/proto`: the hot path in 104 lines, without keys, checks, metrics or limits.

What it reaches beside naive is what this machine allows today: the ratios of the platform are read against its. It runs
in this repository's own environment.
"""

from bench.peers.open_inference import FORMS
from bench.peers.peer import Launch, Peer, application
from bench.peers.servers.common import INPUTS
from bench.peers.setup import ROOT

FOLDER = ROOT.parent / "shared" / "bench" / "proto"
_NAMES = dict(zip(INPUTS, ("m1", "m2", "m3"), strict=True))  # what it calls the mlp, the cnn and the encoder


def _prepare(launch: Launch) -> None:
    """FileNotFoundError: the prototype is not there."""
    if not FOLDER.exists():
        raise FileNotFoundError(f"no prototype at {FOLDER}")
    folder = launch.folder / "models"
    folder.mkdir()
    for model, name in _NAMES.items():
        (folder / f"{name}.onnx").symlink_to(launch.models / f"{model}.onnx")


PEER = Peer(
    "prototype",
    application(FOLDER, "app:asgi"),
    path=lambda model: f"/v2/models/{_NAMES[model]}/infer",
    forms=FORMS,
    binary=True,
    installed=False,
    prepare=_prepare,
    environment={"BENCH_WORK": "{folder}", "PROTO_GC": "1"},
)
