"""The dense part of a model as an ONNX graph, from pooled vectors to predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.models import build_model, parameter_views
from worker.models.wide_deep import is_linear
from worker.spec import FeatureSpec, ModelSpec

Float32s = npt.NDArray[np.float32]

OPSET = 17
IR_VERSION = 9


class GraphError(ValueError):
    """A model that has no graph."""


def onnx_model(spec: ModelSpec, features: FeatureSpec, dense: Float32s) -> Any:
    """Return an `onnx.ModelProto`.

    Inputs: `dense`, float32[n, dense features], as the columns have them with 0 for null, where
    there are any; and `pooled`, float32[n, W], the pooled vectors of the lookups side by side.
    Output: `prediction`, float32[n], the probability of label 1. Sums are in the runtime's order,
    so the last bits differ from ours.

    Args:
        spec: of the model.
        features: that it was trained with.
        dense: float32[dense parameters].

    Raises:
        GraphError: the model is a custom one.
        ImportError: onnx is not installed.
    """
    if spec.type not in ("dlrm", "deepfm", "wide_deep", "linear"):
        remedy = "export its rows as parquet or safetensors"
        if spec.type == "torch":
            remedy = "export safetensors, and give its module to torch.onnx.export (docs/torch.md)"
        raise GraphError(
            f"a model of type {spec.type!r} can't be written as ONNX: its class knows what it"
            f" computes; {remedy}"
        )
    parameters = build_model(spec).parameters
    views = parameter_views(np.ascontiguousarray(dense), parameters)
    graph = _Graph({p.name: v for p, v in zip(parameters, views, strict=True)})
    dense_input = _dense_input(graph, features)
    if spec.type == "dlrm":
        logits = _dlrm(graph, spec, dense_input)
    elif spec.type == "linear":
        logits = _linear(graph, spec, dense_input)
    else:
        logits = _wide_deep(graph, spec, dense_input)
    graph.node("Sigmoid", [graph.node("Squeeze", [logits, graph.ints([1])])], "prediction")
    inputs = {"pooled": spec.pooled_width}
    if dense_input is not None:
        inputs = {"dense": spec.num_dense, **inputs}
    return graph.model(inputs, f"{spec.type} of synchromesh")


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self, weights: Mapping[str, Float32s]) -> None:
        import onnx

        self._onnx = onnx
        self.weights = weights
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def node(
        self, kind: str, inputs: Sequence[str], name: str | None = None, **options: Any
    ) -> str:
        """Add a node of one output; return the output's name."""
        name = name or f"{kind.lower()}_{len(self._nodes)}"
        made = self._onnx.helper.make_node(kind, list(inputs), [name], name=f"at_{name}", **options)
        self._nodes.append(made)
        return name

    def constant(self, array: npt.NDArray[Any], name: str | None = None) -> str:
        name = name or f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(array)
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def layers(self, name: str, inputs: str, *, relu_last: bool) -> str:
        """Add all layers of a name, each of them followed by ReLU, the last one if asked."""
        count = sum(
            each.startswith(f"{name}.") and each.endswith(".weight") for each in self.weights
        )
        for layer in range(count):
            weight, bias = (
                self.constant(self.weights[f"{name}.{layer}.{part}"], f"{name}.{layer}.{part}")
                for part in ("weight", "bias")
            )
            inputs = self.node("Gemm", [inputs, weight, bias])
            if relu_last or layer < count - 1:
                inputs = self.node("Relu", [inputs])
        return inputs

    def model(self, inputs: Mapping[str, int], description: str) -> Any:
        helper, float32 = self._onnx.helper, self._onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "dense_part",
            [helper.make_tensor_value_info(n, float32, ["n", w]) for n, w in inputs.items()],
            [helper.make_tensor_value_info("prediction", float32, ["n"])],
            self._constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(graph, opset_imports=opset, doc_string=description)
        made.ir_version = IR_VERSION
        made.producer_name = "synchromesh"
        self._onnx.checker.check_model(made)
        return made


def _dense_input(graph: _Graph, features: FeatureSpec) -> str | None:
    if not features.dense:
        return None
    if features.dense_transform != "log1p":
        return "dense"
    one = graph.constant(np.float32(1).reshape(1))
    return graph.node("Log", [graph.node("Add", [graph.node("Relu", ["dense"]), one])])


def _dlrm(graph: _Graph, spec: ModelSpec, dense: str | None) -> str:
    num_lookups, dim = len(spec.lookups), spec.lookups[0].dim
    vectors = graph.node("Reshape", ["pooled", graph.ints([-1, num_lookups, dim])])
    first: list[str] = []
    if dense is not None:
        first = [graph.layers("bottom", dense, relu_last=True)]
        bottom = graph.node("Unsqueeze", [*first, graph.ints([1])])
        vectors = graph.node("Concat", [bottom, vectors], axis=1)
    count = num_lookups + len(first)
    dots = graph.node("MatMul", [vectors, graph.node("Transpose", [vectors], perm=[0, 2, 1])])
    flat = graph.node("Reshape", [dots, graph.ints([-1, count * count])])
    places = graph.ints([i * count + j for i in range(count) for j in range(i)])
    pairs = graph.node("Gather", [flat, places], axis=1)
    top = graph.node("Concat", [*first, pairs], axis=1)
    return graph.layers("top", top, relu_last=False)


def _linear(graph: _Graph, spec: ModelSpec, dense: str | None) -> str:
    logits = graph.constant(graph.weights["linear.bias"], "linear.bias")
    if spec.lookups:
        logits = graph.node("Add", [logits, graph.node("ReduceSum", ["pooled", graph.ints([1])])])
    if dense is not None:
        weight = graph.constant(graph.weights["linear.weight"], "linear.weight")
        logits = graph.node("Add", [logits, graph.node("MatMul", [dense, weight])])
    return logits


def _wide_deep(graph: _Graph, spec: ModelSpec, dense: str | None) -> str:
    embeddings = [lookup for lookup in spec.lookups if not is_linear(lookup)]
    width, dim = sum(lookup.dim for lookup in embeddings), embeddings[0].dim if embeddings else 0
    axis, begin, split = graph.ints([1]), graph.ints([0]), graph.ints([width])
    deep = graph.node("Slice", ["pooled", begin, split, axis])
    first_order = graph.node("Slice", ["pooled", split, graph.ints([spec.pooled_width]), axis])
    joined = deep if dense is None else graph.node("Concat", [deep, dense], axis=1)
    logits = graph.layers("mlp", joined, relu_last=False)
    if spec.pooled_width > width:
        logits = graph.node("Add", [logits, graph.node("ReduceSum", [first_order, axis])])
    if dense is not None:
        wide = graph.constant(graph.weights["linear.weight"].reshape(-1, 1), "linear.weight")
        logits = graph.node("Add", [logits, graph.node("MatMul", [dense, wide])])
    if spec.type != "deepfm":
        return logits
    vectors = graph.node("Reshape", [deep, graph.ints([-1, len(embeddings), dim])])
    total = graph.node("ReduceSum", [vectors, axis], keepdims=0)
    squares = graph.node("ReduceSum", [graph.node("Mul", [vectors, vectors]), axis], keepdims=0)
    pairs = graph.node("Sub", [graph.node("Mul", [total, total]), squares])
    summed = graph.node("ReduceSum", [pairs, axis])
    half = graph.constant(np.float32(0.5).reshape(1))
    return graph.node("Add", [logits, graph.node("Mul", [summed, half])])
