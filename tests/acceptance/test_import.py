"""ONNX models that were not trained here: from an upload to a prediction, and hostile ones to a clear refusal."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import ml_dtypes
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import np_to_triton_dtype

from tests.acceptance.problems import check_problem
from tests.support.platform import KEY, Platform

# File: what its refusal says; None: it is a good model.
HOSTILE = {
    "80_good_small.onnx": None,
    "81_truncated.onnx": "cut off",
    "82_garbage.onnx": "not an ONNX model",
    "84_external_data_0.onnx": "only a plain file name",
    "84_external_data_1.onnx": "only a plain file name",
    "84_external_data_2.onnx": "only a plain file name",
    "84_external_data_3.onnx": "only a plain file name",
    "84_external_data_4.onnx": "was not sent",
    "85_external_data_offset.onnx": "was not sent",
    "86_huge_initializer_claim.onnx": "claims 4,611,686,018,427,387,904 elements",
    "87_negative_dim.onnx": "negative dimension",
    "88_constantofshape_bomb.onnx": "does not run",
    "89_unknown_op.onnx": "has no operator",
    "90_custom_domain.onnx": "com.example.custom",
    "91_cycle.onnx": "cycle",
    "92_dangling_input.onnx": "which no node and no input makes",
    "93_duplicate_output.onnx": "which is made elsewhere too",
    "94_opset_999.onnx": "opset 999",
    "95_shape_mismatch.onnx": "Incompatible dimensions",
    "96_nested_if_25.onnx": None,
    "97_hostile_names.onnx": None,
    "98_many_nodes_20000.onnx": None,
    "99_pickle_named.onnx": "not an ONNX model",
}


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(workers=2) as running:
        yield running


def send(platform: Platform, model: str, content: bytes, **form: Any) -> httpx.Response:
    files = [("model", ("a.onnx", content)), *form.pop("data", [])]
    return platform.client.post(f"/api/v1/models/{model}/versions", files=files, data=form)


def imported(platform: Platform, model: str, content: bytes, **form: Any) -> dict[str, Any]:
    answer = send(platform, model, content, **form)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    job = platform.wait(answer.json()["id"], "succeeded")
    version: dict[str, Any] = platform.call("GET", job["links"]["version"])
    return version


def deploy(platform: Platform, model: str) -> None:
    platform.call("PUT", f"/api/v1/endpoints/{model}", 201, json={"model": model, "routes": [{"version": 1}]})


def linear(weights: np.ndarray[Any, Any], *, external: str | None = None, rows: str | int = "n") -> onnx.ModelProto:
    """x [n, 4] times weights [4, 3]."""
    tensor = numpy_helper.from_array(weights, "W")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    size = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, size[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, size[1]])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def across() -> onnx.ModelProto:
    """A softmax over the rows."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "across",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def infer(platform: Platform, model: str, **inputs: np.ndarray[Any, Any]) -> Any:
    client = triton.InferenceServerClient(str(platform.url).removeprefix("http://"))
    with client:
        given = []
        for name, value in inputs.items():
            given.append(triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
            given[-1].set_data_from_numpy(value)
        return client.infer(model, given, headers={"x-api-key": KEY})


class TestGood:
    def test_from_an_upload_to_both_protocols(self, platform: Platform) -> None:
        version = imported(
            platform, "linear", linear(WEIGHTS).SerializeToString(), metadata='{"description": "a test"}'
        )
        assert (version["task"], version["family"], version["state"]) == ("inference", "imported", "ready")
        assert version["signature"]["batched"] is True
        assert [t["shape"] for t in version["signature"]["outputs"]] == [[-1, 3]]
        card = platform.call("GET", version["links"]["card"])
        assert (card["description"], card["opsets"]) == ("a test", {"ai.onnx": 17})
        deploy(platform, "linear")
        np.testing.assert_allclose(infer(platform, "linear", x=ROWS).as_numpy("y"), ROWS @ WEIGHTS, rtol=1e-5)
        answer = platform.call("POST", "/api/v1/endpoints/linear/predict", json={"instances": ROWS.tolist()})
        got = [prediction["y"] for prediction in answer["predictions"]]
        np.testing.assert_allclose(got, ROWS @ WEIGHTS, rtol=1e-5)

    @pytest.mark.parametrize("name", ["weights.bin", "model.onnx_data", "weights", "W 1.json"])
    def test_weights_beside_the_model(self, platform: Platform, name: str) -> None:
        model = f"beside-{len(name)}"
        content = linear(WEIGHTS, external=name).SerializeToString()
        version = imported(platform, model, content, data=[("data", (name, WEIGHTS.tobytes()))])
        files = platform.call("GET", version["links"]["files"])["items"]
        assert {"model.onnx", name, "manifest.json"} <= {file["path"] for file in files}
        deploy(platform, model)
        np.testing.assert_allclose(infer(platform, model, x=ROWS).as_numpy("y"), ROWS @ WEIGHTS, rtol=1e-5)

    @pytest.mark.parametrize(("kind", "datatype"), [(TensorProto.FLOAT16, "FP16"), (TensorProto.BFLOAT16, "BF16")])
    def test_half_precision_over_http_and_grpc(self, platform: Platform, kind: int, datatype: str) -> None:
        """Binary only, as the protocol has it."""
        nodes = [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["f", "f"], ["doubled"]),
            helper.make_node("Cast", ["doubled"], ["y"], to=kind),
        ]
        ends = [[helper.make_tensor_value_info(name, kind, ["n", 4])] for name in "xy"]
        graph = helper.make_graph(nodes, "half", *ends)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        name = datatype.lower()
        version = imported(platform, name, made.SerializeToString())
        assert version["signature"]["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1, 4]}]
        assert version["signature"]["batched"] is True
        deploy(platform, name)
        rows = np.array([[0.5, -2, 1024, 0], [1, 2, 3, 4]], np.float16 if datatype == "FP16" else ml_dtypes.bfloat16)
        numbers = rows.astype(np.float32)
        for module, address in ((triton, str(platform.url).removeprefix("http://")), (triton_grpc, platform.grpc)):
            with module.InferenceServerClient(address) as client:
                given = module.InferInput("x", [2, 4], datatype)
                given.set_data_from_numpy(rows)
                answer = client.infer(name, [given], headers={"x-api-key": KEY}).as_numpy("y")
            np.testing.assert_array_equal(answer.astype(np.float32), numbers * 2)
        answer = platform.call("POST", f"/api/v1/endpoints/{name}/predict", json={"instances": numbers.tolist()})
        assert [prediction["y"] for prediction in answer["predictions"]] == (numbers * 2).tolist()
        as_json = {"inputs": [{"name": "x", "datatype": datatype, "shape": [2, 4], "data": numbers.tolist()}]}
        refused = platform.client.post(f"/v2/models/{name}/infer", json=as_json)
        assert refused.status_code == 400
        assert f"{datatype} has no JSON form" in refused.json()["error"]

    def test_a_fixed_batch_is_no_batch(self, platform: Platform) -> None:
        version = imported(platform, "fixed", linear(WEIGHTS, rows=1).SerializeToString())
        assert version["signature"]["batched"] is False
        deploy(platform, "fixed")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda row: infer(platform, "fixed", x=row[None]).as_numpy("y"), ROWS))
        np.testing.assert_allclose(np.concatenate(answers), ROWS @ WEIGHTS, rtol=1e-5)

    def test_a_sender_says_that_rows_are_not_batched(self, platform: Platform) -> None:
        content = linear(WEIGHTS).SerializeToString()
        version = imported(platform, "by-itself", content, metadata='{"batched": false}')
        assert version["signature"]["batched"] is False
        deploy(platform, "by-itself")
        config = platform.call("GET", "/v2/models/by-itself/config")
        assert config["max_batch_size"] == 0
        np.testing.assert_allclose(infer(platform, "by-itself", x=ROWS).as_numpy("y"), ROWS @ WEIGHTS, rtol=1e-5)

    def test_a_sender_says_that_rows_are_batched_and_errs(self, platform: Platform) -> None:
        answer = send(platform, "erring", across().SerializeToString(), metadata='{"batched": true}')
        job = platform.wait(answer.json()["id"], "failed")
        assert job["error"]["code"] == "invalid_data"
        assert job["error"]["errors"][0]["loc"] == ["metadata", "batched"]

    def test_rows_that_depend_on_each_other_are_not_batched(self, platform: Platform) -> None:
        version = imported(platform, "across", across().SerializeToString())
        assert version["signature"]["batched"] is False
        deploy(platform, "across")
        x = np.ones((4, 2), np.float32)
        np.testing.assert_allclose(infer(platform, "across", x=x).as_numpy("y"), x / 4)

    def test_requests_of_any_length_share_an_endpoint(self, platform: Platform) -> None:
        nodes = [helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT)]
        nodes.append(helper.make_node("ReduceSum", ["f", "axes"], ["total"], keepdims=0))
        graph = helper.make_graph(
            nodes,
            "lengths",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "tokens"])],
            [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(np.array([1], np.int64), "axes")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        version = imported(platform, "lengths", model.SerializeToString())
        assert version["signature"]["inputs"][0]["shape"] == [-1, -1]
        deploy(platform, "lengths")
        rng = np.random.default_rng(1)
        requests = [rng.integers(0, 1000, (1 + n % 3, 1 + n % 7)) for n in range(60)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda ids: infer(platform, "lengths", ids=ids).as_numpy("total"), requests))
        for ids, answer in zip(requests, answers, strict=True):
            np.testing.assert_allclose(answer, ids.sum(1))

    def test_a_single_number(self, platform: Platform) -> None:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "number",
            [info("x", TensorProto.FLOAT, [])],
            [info("y", TensorProto.FLOAT, [])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        imported(platform, "number", model.SerializeToString())
        deploy(platform, "number")
        for instance in (1.5, {"x": 1.5}):
            answer = platform.call("POST", "/api/v1/endpoints/number/predict", json={"instances": [instance]})
            assert answer["predictions"] == [{"y": 1.5}]

    def test_values_that_break_a_node_are_the_callers(self, platform: Platform) -> None:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Expand", ["x", "s"], ["y"])],
            "grow",
            [info("x", TensorProto.FLOAT, [1, 1]), info("s", TensorProto.INT64, [2])],
            [info("y", TensorProto.FLOAT, ["a", "b"])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        imported(platform, "grow", model.SerializeToString())
        deploy(platform, "grow")
        good = {"instances": [{"x": [[1.0]], "s": [2, 3]}]}
        answer = platform.call("POST", "/api/v1/endpoints/grow/predict", json=good)
        assert answer["predictions"] == [{"y": [[1.0] * 3] * 2}]
        bad = {"instances": [{"x": [[1.0]], "s": [-2, 3]}]}
        refused = platform.client.post("/api/v1/endpoints/grow/predict", json=bad)
        check_problem(refused, 422, "invalid_tensor", word="cannot take these values")

    def test_a_model_larger_than_a_json_body(self, platform: Platform) -> None:
        weights = np.random.default_rng(0).standard_normal((1500, 1500)).astype(np.float32)  # 9 MB
        version = imported(platform, "large", linear(weights).SerializeToString())
        assert version["variants"][0]["bytes"] > weights.nbytes

    def test_the_next_import_is_the_next_version(self, platform: Platform) -> None:
        content = linear(WEIGHTS).SerializeToString()
        assert [imported(platform, "again", content)["version"] for _ in range(2)] == [1, 2]

    def test_a_repeated_request_imports_once(self, platform: Platform) -> None:
        content, headers = linear(WEIGHTS).SerializeToString(), {"idempotency-key": "import-1"}
        path = "/api/v1/models/once/versions"
        ids = {platform.client.post(path, files={"model": content}, headers=headers).json()["id"] for _ in range(2)}
        assert len(ids) == 1
        other = platform.client.post(path, files={"model": content + b"x"}, headers=headers)
        check_problem(other, 409, "idempotency_key_reused")


class TestForms:
    def test_without_a_model(self, platform: Platform) -> None:
        answer = platform.client.post("/api/v1/models/m/versions", files={"data": ("w.bin", b"x")})
        check_problem(answer, 422, "invalid_input", ["model"])

    def test_an_empty_model(self, platform: Platform) -> None:
        check_problem(send(platform, "m", b""), 422, "invalid_input", ["model"], "empty")

    @pytest.mark.parametrize("name", ["a/b.bin", ".hidden", "model.onnx", "signature.json", "manifest.json", "w" * 300])
    def test_names_of_data_files(self, platform: Platform, name: str) -> None:
        answer = send(platform, "m", b"x", data=[("data", (name, b"x"))])
        if name == "a/b.bin":  # a sender's folder is cut off
            assert answer.status_code == 202
        else:
            check_problem(answer, 422, "invalid_input", ["data"])

    def test_two_files_of_one_name(self, platform: Platform) -> None:
        answer = send(platform, "m", b"x", data=[("data", ("w.bin", b"x")), ("data", ("w.bin", b"y"))])
        check_problem(answer, 422, "invalid_input", ["data"], "same name")

    @pytest.mark.parametrize("metadata", ["{", "[]", '{"more": 1}', '{"description": 1}', '{"batched": "perhaps"}'])
    def test_metadata(self, platform: Platform, metadata: str) -> None:
        answer = send(platform, "m", b"x", metadata=metadata)
        check_problem(answer, 422, "invalid_input")
        assert answer.json()["errors"][0]["loc"][0] == "metadata"

    def test_a_name_that_no_model_can_have(self, platform: Platform) -> None:
        check_problem(send(platform, "-m", b"x"), 422, "invalid_input", ["model"])

    def test_a_key_that_may_not(self, platform: Platform) -> None:
        key = platform.call("POST", "/api/v1/keys", 201, json={"name": "reader", "scopes": ["read"]})["secret"]
        answer = httpx.post(
            f"{platform.url}/api/v1/models/m/versions", files={"model": b"x"}, headers={"x-api-key": key}
        )
        check_problem(answer, 403, "forbidden")


@pytest.fixture(scope="module")
def jobs(platform: Platform, shared_data: Path) -> dict[str, dict[str, Any]]:
    sent = {}
    for name in HOSTILE:
        content = (shared_data / "hostile" / name).read_bytes()
        answer = send(platform, f"h-{name[:2]}", content)
        assert answer.status_code == 202, answer.text
        sent[name] = answer.json()["id"]
    return {name: platform.wait(job) for name, job in sent.items()}


class TestHostile:
    @pytest.mark.parametrize("name", sorted(HOSTILE))
    def test_its_stated_answer(self, jobs: dict[str, dict[str, Any]], name: str) -> None:
        words, job = HOSTILE[name], jobs[name]
        if words is None:
            assert job["state"] == "succeeded", job["error"]
            return
        assert job["state"] == "failed"
        assert (job["error"]["code"], job["error"]["retryable"]) == ("invalid_data", False)
        assert words in job["error"]["detail"]
        assert "aim-" not in job["error"]["detail"]  # the folder of this machine

    def test_no_version_is_left(self, platform: Platform, jobs: dict[str, dict[str, Any]]) -> None:
        assert jobs
        names = {model["name"] for model in platform.call("GET", "/api/v1/models", params={"limit": 500})["items"]}
        assert names & {f"h-{name[:2]}" for name, words in HOSTILE.items() if words} == set()

    def test_nothing_is_left_in_the_upload(self, platform: Platform, jobs: dict[str, dict[str, Any]]) -> None:
        assert jobs
        assert not list((platform.data_dir / "store" / "tmp").iterdir())
        with sqlite3.connect(f"file:{platform.data_dir / 'registry.db'}?mode=ro", uri=True) as registry:
            uploads = registry.execute(
                "SELECT count(*) FROM files WHERE owner NOT IN (SELECT id FROM model_versions)"
            ).fetchone()
        assert uploads == (0,)

    def test_the_platform_still_works(self, platform: Platform, jobs: dict[str, dict[str, Any]]) -> None:
        assert jobs
        assert imported(platform, "after", linear(WEIGHTS).SerializeToString())["version"] == 1


def endless() -> onnx.ModelProto:
    """A loop of 2^62 steps."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, ["n", 4])],
        [info("still", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, ["n", 4])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)],
        "endless",
        [info("x", TensorProto.FLOAT, ["n", 4])],
        [info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array(2**62), "steps"), numpy_helper.from_array(np.ones((), bool), "yes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_model_that_runs_for_ever_ends_at_the_limit_and_the_next_one_is_imported() -> None:
    with Platform(AIMASS_LIMIT_IMPORT_TIMEOUT_S="6") as platform:
        job = send(platform, "endless", endless().SerializeToString()).json()["id"]
        error = platform.wait(job, "failed")["error"]
        assert error["code"] == "job_timed_out"
        assert "AIMASS_LIMIT_IMPORT_TIMEOUT_S = 6" in error["detail"]
        assert not platform.children()
        assert imported(platform, "next", linear(WEIGHTS).SerializeToString())["version"] == 1


def test_every_imported_model_has_an_operation_whose_example_can_be_sent(platform: Platform) -> None:
    imported(platform, "documented", linear(WEIGHTS).SerializeToString())
    deploy(platform, "documented")
    paths = platform.call("GET", "/openapi.json")["paths"]
    own = {path: item["post"] for path, item in paths.items() if path.endswith("/predict") and "{" not in path}
    assert "/api/v1/endpoints/documented/predict" in own
    for path, operation in own.items():
        content = operation["requestBody"]["content"]["application/json"]
        jsonschema.validate(content["example"], content["schema"], jsonschema.Draft202012Validator)
        answer = platform.call("POST", path, 200, json=content["example"])
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)


def test_what_is_imported_is_listed_in_the_document(platform: Platform) -> None:
    operation = platform.call("GET", "/openapi.json")["paths"]["/api/v1/models/{model}/versions"]["post"]
    assert operation["operationId"] == "model_versions_import"
    assert "multipart/form-data" in operation["requestBody"]["content"]
