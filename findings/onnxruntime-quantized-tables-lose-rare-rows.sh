#!/usr/bin/env bash
# onnxruntime 1.32.0: quantize_dynamic takes the embedding tables along (the data of Gather), with *one* scale and zero point for a whole
# table, with per_channel=True too. Rows whose values are small beside the largest of the table become all zero: below 9,999 of
# 10,000 rows, where one row is large. Rows grow with the steps that move them: the large ones are those of hot ids.
# Expected: a scale for each row, as of torch's quantized EmbeddingBag and FBGEMM's tables, or tables left alone, since "dynamic"
# quantization is known for products. The model loads, runs and is a quarter as large; ids with little data get one and the same score.
# What to do: op_types_to_quantize=["MatMul"], and quantize the table by rows yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

logging.disable(logging.WARNING)
ROWS, DIM, HOT = 10_000, 16, 7
draw = np.random.default_rng(0)
table = draw.normal(0, 0.01, (ROWS, DIM)).astype(np.float32)
table[HOT] *= 1000
layer = draw.normal(0, 1, (DIM, 1)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("MatMul", ["rows", "layer"], ["score"])],
    "scores",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", dim]) for name, dim in (("rows", DIM), ("score", 1))],
    [numpy_helper.from_array(table, "table"), numpy_helper.from_array(layer, "layer")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")

for options in ({}, {"per_channel": True}, {"weight_type": QuantType.QInt8}, {"op_types_to_quantize": ["MatMul"]}):
    quantize_dynamic("model.onnx", "small.onnx", **options)
    scales = [each for each in onnx.load("small.onnx").graph.initializer if each.name == "table_scale"]
    rows, score = onnxruntime.InferenceSession("small.onnx").run(None, {"ids": np.delete(np.arange(ROWS), HOT)})
    zero, scores = int((rows == 0).all(axis=1).sum()), len(np.unique(score))
    print(f"{options}: {zero} of {ROWS} rows are zero, the {ROWS - 1} rare ids have {scores} scores")
    if "op_types_to_quantize" in options:
        assert not scales and zero == 0 and scores > 1000
    else:
        assert numpy_helper.to_array(scales[0]).size == 1 and zero == ROWS - 1 and scores == 1
PYTHON
