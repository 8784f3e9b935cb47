"""The layers of the served model alone, as libraries compute them: what any server of it must take.

Each is given the inputs of both networks and weights as it likes them best, on one thread.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl

from worker.models import build_model
from worker.models.predicted_layers import pack_layers, predict_layers
from worker.spec import ModelSpec

Float32s = npt.NDArray[np.float32]
Layers = list[tuple[Float32s, Float32s]]
Run = Callable[[], object]


class DenseProducts:
    """Both networks of a DLRM with random weights, and inputs of so many samples.

    Attributes:
        operations: multiplications and additions of one run.
    """

    def __init__(self, model: ModelSpec, samples: int) -> None:
        rng = np.random.default_rng(1)
        shapes = {p.name: p.shape for p in build_model(model).parameters}
        self._networks: list[Layers] = [
            [
                (0.05 * rng.standard_normal(shape, np.float32), np.ones(shape[1], np.float32))
                for name, shape in shapes.items()
                if name.startswith(network) and name.endswith("weight")
            ]
            for network in ("bottom.", "top.")
        ]
        widths = [layers[0][0].shape[0] for layers in self._networks]
        self._inputs = [rng.random((samples, width), np.float32) for width in widths]
        weights = sum(w.size for layers in self._networks for w, _ in layers)
        self.operations = 2 * samples * weights

    def runs(self, libraries: Sequence[str]) -> dict[str, Run]:
        """Return what computes all layers once, by library, ours first; all give the same."""
        made = {"ours": self._ours(), "numpy": self._numpy()}
        made |= {"torch": self._torch()} if "torch" in libraries else {}
        made |= {"onnxruntime": self._onnxruntime()} if "onnxruntime" in libraries else {}
        expected = np.asarray(made["ours"]())
        for name, run in made.items():
            if not np.allclose(np.asarray(run()), expected, rtol=1e-3, atol=1e-3):
                raise RuntimeError(f"{name} does not give the same")
        return made

    def _ours(self) -> Run:
        packed = [
            pack_layers([(w, b, i < len(layers) - 1) for i, (w, b) in enumerate(layers)])
            for layers in self._networks
        ]
        n = len(self._inputs[0])
        outs = [np.empty((n, layers[-1][0].shape[1]), np.float32) for layers in self._networks]
        work = np.empty(2 * n * max(each.widest for each in packed), np.float32)

        def run() -> object:
            for layers, given, out in zip(packed, self._inputs, outs, strict=True):
                predict_layers(layers, given, work, out)
            return outs[-1]

        return run

    def _numpy(self) -> Run:
        blas = threadpoolctl.ThreadpoolController().select(user_api="blas")

        def run() -> object:
            x = self._inputs[0]
            with blas.limit(limits=1):
                for layers, given in zip(self._networks, self._inputs, strict=True):
                    x = given
                    for i, (weight, bias) in enumerate(layers):
                        x = x @ weight
                        x += bias
                        if i < len(layers) - 1:
                            np.maximum(x, 0, out=x)
            return x

        return run

    def _torch(self) -> Run:
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        networks = [
            [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in layers]
            for layers in self._networks
        ]

        def run() -> object:
            x = None
            with torch.inference_mode():
                for layers, given in zip(networks, self._inputs, strict=True):
                    x = torch.from_numpy(given)
                    for i, (weight, bias) in enumerate(layers):
                        x = torch.addmm(bias, x, weight)
                        x = torch.relu_(x) if i < len(layers) - 1 else x
            return x

        return run

    def _onnxruntime(self) -> Run:
        sessions = [_session(layers) for layers in self._networks]

        def run() -> object:
            out = None
            for session, given in zip(sessions, self._inputs, strict=True):
                out = session.run(None, {"x": given})[0]
            return out

        return run


def _session(layers: Layers) -> Any:
    """Return a session of onnxruntime for a graph of nothing but these layers."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, x = [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        constants += [
            numpy_helper.from_array(a, f"{n}{i}") for n, a in (("w", weight), ("b", bias))
        ]
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"y{i}"]))
        x = f"y{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [x], [f"z{i}"]))
            x = f"z{i}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", layers[0][0].shape[0]), (x, layers[-1][0].shape[1]))
    ]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
