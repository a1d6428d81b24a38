"""What ONNX Runtime is told, by configuration."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.core.errors import Misconfigured
from app.serving.host import Host
from app.serving.process_memory import resident_bytes
from app.serving.provider import Provider
from app.settings import ServingSettings
from tests.support.graphs import heavy, source

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


def test_the_cpu_is_the_default():
    provider = Provider.of(ServingSettings())
    assert (provider.chain, provider.arena) == (["CPUExecutionProvider"], True)


def test_session_options_are_passed_on():
    options = Provider.of(ServingSettings(arena=False)).session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"  # within a run, and no longer
    lane = Provider.of(ServingSettings()).session_options(1)
    assert lane.enable_cpu_mem_arena
    assert lane.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_sum_before_a_norm_is_not_fused_into_the_slower_kernel_on_the_cpu(tmp_path: Path):
    """Of ONNX Runtime: where it no longer would by default, or no longer knows the name, nobody has to ask it."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, 64]) for name in "abn"]
    weights = [numpy_helper.from_array(np.ones(64, np.float32), name) for name in ("scale", "shift")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "scale", "shift"], ["n"]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")

    def kernels(options: ort.SessionOptions) -> list[str]:
        options.optimized_model_filepath = str(tmp_path / "made.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "made.onnx").graph.node]

    assert kernels(ort.SessionOptions()) == ["SkipLayerNormalization"]
    assert kernels(Provider().session_options(1)) == ["Add", "LayerNormalization"]


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with three GPUs."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr("app.core.host.gpu_name", lambda number: (["NVIDIA H200"] * 3)[number])


@pytest.mark.usefixtures("with_cuda")
def test_cuda_is_told_its_device_and_to_choose_convolutions_by_heuristic():
    (name, options), fallback = Provider.of(ServingSettings(provider="cuda:1")).chain
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "1"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["use_tf32"] == "0"
    assert Provider.of(ServingSettings(provider="cuda")).chain[0][1]["device_id"] == "0"
    assert Provider.on_gpu("cuda:1").chain == Provider.of(ServingSettings(provider="cuda:1")).chain  # as jobs measure


@pytest.mark.usefixtures("with_cuda")
def test_a_gpu_that_the_driver_does_not_know_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    def unknown(number: int) -> str:
        raise LookupError(f"NVIDIA's driver shows this process no GPU {number}")

    monkeypatch.setattr("app.core.host.gpu_name", unknown)
    with pytest.raises(Misconfigured, match=r"AIMASS_SERVING_PROVIDER=cuda:7: .* no GPU 7, or set it to cpu"):
        Host(ServingSettings(provider="cuda:7"))


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_a_provider_that_is_not_installed_is_named():
    with pytest.raises(Misconfigured, match=r"AIMASS_SERVING_PROVIDER=cuda:0: .* install onnxruntime-gpu"):
        Host(ServingSettings(provider="cuda:0"))


@pytest.mark.usefixtures("with_cuda")
def test_a_session_that_fell_back_to_the_cpu_is_refused(tmp_path: Path):
    session = ort.InferenceSession(heavy(tmp_path / "m", 2) / "model.onnx", providers=["CPUExecutionProvider"])
    Provider.of(ServingSettings()).check(session)
    cuda = Provider.of(ServingSettings(provider="cuda:2"))
    assert cuda.arenas == "cpu:0;gpu:2"
    with pytest.raises(Misconfigured, match=r"AIMASS_SERVING_PROVIDER: .* would run on the CPU"):
        cuda.check(session)


@pytest.mark.parametrize("arena", [True, False])
async def test_a_model_answers_with_and_without_an_arena(tmp_path: Path, arena: bool):  # noqa: FBT001 - a parameter
    host = Host(ServingSettings(arena=arena))
    served = await host.load(source(heavy(tmp_path / "m", 2, bias=1), "m"))
    with served:
        answer = await served.infer((np.ones((1, 512), np.float32),), 1)
    assert answer.outputs[0][0, 0] == 2
    await host.swap(served)
    await host.close()


@pytest.mark.gpu
async def test_on_a_gpu_a_model_is_proven_answers_as_on_the_cpu_and_returns_its_memory(tmp_path: Path):
    if not HAS_CUDA:
        pytest.skip("this ONNX Runtime has no CUDA")
    folder = heavy(tmp_path / "m", 48, bias=1)
    rows = np.random.default_rng(0).standard_normal((8, 512), np.float32)
    answers = []
    for provider in ("cpu", "cuda:0"):
        host = Host(ServingSettings(provider=provider))
        await host.swap(await host.load(source(folder, "m")))
        with await host.reach("m") as served:
            answers.append((await served.infer((rows,), 8)).outputs[0])
        await host.close()
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-3, atol=1e-4)
    after = []
    for _ in range(6):  # the first cycles make CUDA's context and cuDNN's workspaces, which stay
        host = Host(ServingSettings(provider="cuda:0"))
        await host.swap(await host.load(source(folder, "m")))
        await host.close()
        after.append(resident_bytes())
    assert after[-1] - after[2] < 48 << 20
