"""A model trained without the platform: an MLP over the breast cancer table, as its owner would export it."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

HIDDEN = 256


class Foreign:
    """`x [n, 30]` to `logits [n, 1]` of the second class, fitted on the first 300 rows."""

    def __init__(self) -> None:
        data = load_breast_cancer()
        self.columns = [str(name) for name in data.feature_names]
        self.classes = [str(name) for name in data.target_names]
        self.x, self.y = data.data.astype(np.float32), data.target
        scaler = StandardScaler().fit(self.x[:300])
        self._net = MLPClassifier((HIDDEN,), max_iter=60, tol=1e-2, random_state=0)
        self._net.fit(scaler.transform(self.x[:300]), self.y[:300])
        (w1, w2), (b1, b2) = self._net.coefs_, self._net.intercepts_
        self._weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "mean": scaler.mean_, "scale": scaler.scale_}

    def logits(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of every row, computed by numpy."""
        w = self._weights
        found: np.ndarray[tuple[int], np.dtype[np.float64]] = (
            np.maximum((self.x - w["mean"]) / w["scale"] @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
        )[:, 0]
        return found

    def onnx(self) -> bytes:
        """The graph."""
        graph = helper.make_graph(
            [
                helper.make_node("Sub", ["x", "mean"], ["centred"]),
                helper.make_node("Div", ["centred", "scale"], ["scaled"]),
                helper.make_node("Gemm", ["scaled", "w1", "b1"], ["h"]),
                helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
            ],
            "foreign",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 30])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in self._weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return model.SerializeToString()
