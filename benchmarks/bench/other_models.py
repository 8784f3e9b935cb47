"""The same DLRM in other libraries, its rows as one array; and a server around one of them.

    python -m bench.other_models KIND FOLDER PORT

The server is the library that ours has, and reads the same requests: binary tensors of the Open
Inference Protocol. A request is computed in a thread, as it is.
"""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.served_model import SavedDlrm
from synchromesh.onnx_model import onnx_model
from worker.models import build_model, parameter_views

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Predict = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""From raw dense features, float32[n, 13], and row numbers, int64[n, tables], to probabilities."""

KINDS = ("onnxruntime", "torch", "tensorflow")
_DTYPES = {"FP32": np.float32, "INT64": np.int64}


def write_other(saved: SavedDlrm, folder: Path) -> None:
    """Write rows, parameters and graph to where the server reads them."""
    folder.mkdir()
    np.save(folder / "rows.npy", saved.vectors())
    graph = onnx_model(saved.model, saved.features, saved.dense)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    parameters = build_model(saved.model).parameters
    views = parameter_views(saved.dense, parameters)
    arrays: Any = {p.name: v for p, v in zip(parameters, views, strict=True)}
    np.savez(folder / "dense.npz", **arrays)
    names = [list(saved.features.dense), [each.column for each in saved.features.sparse]]
    (folder / "columns.json").write_text(json.dumps(names, allow_nan=False))


def open_other(kind: str, folder: Path, *, threads: int = 1) -> Predict:
    """Return the model of a library; raises ImportError where it is missing."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    opened = {"onnxruntime": _onnxruntime, "torch": _torch, "tensorflow": _tensorflow}
    return opened[kind](rows, folder, threads)


def _onnxruntime(rows: Any, folder: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)

    def predict(dense: Any, ids: Any) -> Any:
        pooled = np.take(rows, ids.reshape(-1), axis=0).reshape(len(ids), -1)
        return session.run(None, {"dense": dense, "pooled": pooled})[0]

    return predict


def _torch(rows: Any, folder: Path, threads: int) -> Predict:
    torch = importlib.import_module("torch")  # it is no dependency

    torch.set_num_threads(threads)
    weights = {
        name: torch.from_numpy(array) for name, array in np.load(folder / "dense.npz").items()
    }
    table = torch.from_numpy(np.array(rows))

    def layers(name: str, x: Any, *, relu_last: bool) -> Any:
        count = sum(each.startswith(f"{name}.") for each in weights) // 2
        for i in range(count):
            x = torch.addmm(weights[f"{name}.{i}.bias"], x, weights[f"{name}.{i}.weight"])
            x = torch.relu_(x) if relu_last or i < count - 1 else x
        return x

    lower: dict[int, Any] = {}

    def predict(dense: Any, ids: Any) -> Any:
        with torch.inference_mode():
            bottom = layers("bottom", torch.log1p(torch.from_numpy(dense)), relu_last=True)
            found = table.index_select(0, torch.from_numpy(ids.reshape(-1)))
            vectors = torch.cat([bottom.unsqueeze(1), found.view(len(ids), -1, table.shape[1])], 1)
            count = vectors.shape[1]
            places = lower.setdefault(count, torch.tril_indices(count, count, -1))
            dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, places[0], places[1]]
            logits = layers("top", torch.cat([bottom, dots], 1), relu_last=False)
            return torch.sigmoid(logits).squeeze(1).numpy()

    return predict


def _tensorflow(rows: Any, folder: Path, threads: int) -> Predict:
    tf = importlib.import_module("tensorflow")  # it is no dependency

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    weights = {name: tf.constant(array) for name, array in np.load(folder / "dense.npz").items()}
    table = tf.constant(np.array(rows))
    columns = [len(each) for each in json.loads((folder / "columns.json").read_text())]
    count = columns[1] + 1
    places = tf.constant([i * count + j for i in range(count) for j in range(i)])

    def layers(name: str, x: Any, *, relu_last: bool) -> Any:
        count = sum(each.startswith(f"{name}.") for each in weights) // 2
        for i in range(count):
            x = tf.matmul(x, weights[f"{name}.{i}.weight"]) + weights[f"{name}.{i}.bias"]
            x = tf.nn.relu(x) if relu_last or i < count - 1 else x
        return x

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, columns[0]], tf.float32),
            tf.TensorSpec([None, columns[1]], tf.int64),
        ]
    )
    def graph(dense: Any, ids: Any) -> Any:
        bottom = layers("bottom", tf.math.log1p(dense), relu_last=True)
        vectors = tf.concat([bottom[:, tf.newaxis], tf.gather(table, ids)], 1)
        products = tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), [-1, count * count])
        top = tf.concat([bottom, tf.gather(products, places, axis=1)], 1)
        return tf.sigmoid(layers("top", top, relu_last=False))[:, 0]

    def predict(dense: Any, ids: Any) -> Any:
        return graph(dense, ids).numpy()

    return predict


class OtherServer:
    """An RSGI application: decode, compute in a thread, encode."""

    def __init__(self, predict: Predict, columns: Sequence[Sequence[str]], rows_each: int) -> None:
        self._predict = predict
        self._dense, self._sparse = columns
        self._starts = np.arange(len(self._sparse)) * rows_each
        self._threads = ThreadPoolExecutor(1)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.method == "GET":
            protocol.response_empty(200, [])
            return
        body = await protocol()
        size = int(scope.headers["inference-header-content-length"])
        loop = asyncio.get_running_loop()
        answer, head = await loop.run_in_executor(self._threads, self._answer, body, size)
        headers = [("inference-header-content-length", str(head))]
        protocol.response_bytes(200, headers, answer)

    def _answer(self, body: bytes, size: int) -> tuple[bytes, int]:
        start, arrays = size, {}
        for tensor in json.loads(body[:size])["inputs"]:
            end = start + tensor["parameters"]["binary_data_size"]
            arrays[tensor["name"]] = np.frombuffer(body[start:end], _DTYPES[tensor["datatype"]])
            start = end
        dense = np.stack([arrays[name] for name in self._dense], axis=1)
        ids = np.stack([arrays[name] for name in self._sparse], axis=1) + self._starts
        values = self._predict(dense, ids)
        data = values.astype("<f4").tobytes()
        output = {"name": "prediction", "datatype": "FP32", "shape": [len(values)],
                  "parameters": {"binary_data_size": len(data)}}  # fmt: skip
        head = json.dumps({"outputs": [output]}, allow_nan=False).encode()
        return head + data, len(head)


def main(kind: str, folder: Path, port: int) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    predict = open_other(kind, folder)
    columns = json.loads((folder / "columns.json").read_text())
    rows = len(np.load(folder / "rows.npy", mmap_mode="r"))
    server = Server(
        OtherServer(predict, columns, rows // len(columns[1])),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
    asyncio.run(server.serve())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
