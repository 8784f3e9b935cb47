"""The same DLRM in other libraries, its rows as one array; and a server around one of them.

    python -m bench.other_models KIND FOLDER PORT loop|thread

It has the server that ours has and reads the same requests, binary tensors of the Open Inference
Protocol, whose JSON it knows again, too. What has come while a batch was computed is the next one,
in the thread of the loop or in one of its own.
"""

import asyncio
import importlib
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.fixed_answers import serve
from bench.served_model import SavedDlrm
from serving.calls import BINARY, Answer
from serving.computing import JSON_BYTES_HEADER
from serving.endpoint.heads import Asked, Head
from serving.endpoint.server import run_loop
from synchromesh.onnx_model import onnx_model
from worker.models import build_model, parameter_views

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Predict = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""From raw dense features, float32[n, 13], and row numbers, int64[n, tables], to probabilities."""

KINDS = ("onnxruntime", "torch", "tensorflow")
MOST_SAMPLES = 1024  # from which on no further request is added to a batch, as in ours
_DTYPES: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64}
_Layout = list[tuple[str, Any, int, int]]  # name, dtype, values, first byte behind the JSON


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
    """Answers requests as ours does: what has come meanwhile is computed together.

    Args:
        predict: of the library.
        columns: of the dense and of the sparse inputs, in the order of the model.
        rows_each: of every table.
        in_thread: whether a thread of its own computes, not that of the loop.
    """

    stopping = False

    def __init__(
        self,
        predict: Predict,
        columns: Sequence[Sequence[str]],
        rows_each: int,
        *,
        in_thread: bool,
    ) -> None:
        self._predict = predict
        self._dense, self._sparse = columns
        self._starts = np.arange(len(self._sparse)) * rows_each
        self._layouts: dict[bytes, _Layout] = {}
        self._waiting: deque[_Open] = deque()
        self._woken = False
        self._thread = ThreadPoolExecutor(1) if in_thread else None

    def begin(self, head: Head) -> Answer | Asked:
        if head.method == "GET":
            return Answer(200, b"")
        return _Open(self, int(head.headers["inference-header-content-length"]))

    def note(self, head: Head, answer: Answer) -> None:
        """Nothing is counted."""

    def submit(self, asked: "_Open") -> None:
        self._waiting.append(asked)
        if not self._woken:
            self._woken = True
            self._wake()

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        if self._thread is None:
            loop.call_soon(self._run)
        else:
            self._thread.submit(self._run_apart, loop)

    def _run(self) -> None:
        self._tell(self._next())

    def _run_apart(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(self._tell, self._next())

    def _tell(self, answered: "list[tuple[_Open, Answer]]") -> None:
        self._woken = bool(self._waiting)
        if self._woken:
            self._wake()
        for asked, answer in answered:
            asked.done(answer)

    def _next(self) -> "list[tuple[_Open, Answer]]":
        taken: list[_Open] = []
        read = []
        samples = 0
        while self._waiting and samples < MOST_SAMPLES:
            taken.append(self._waiting.popleft())
            read.append(self._read(taken[-1]))
            samples += len(read[-1][0])
        if len(read) == 1:
            values = self._predict(*read[0])
        else:
            dense, ids = zip(*read, strict=True)
            values = self._predict(np.concatenate(dense), np.concatenate(ids))
        ends = np.cumsum([len(each) for each, _ in read])
        parts = np.split(values, ends[:-1])
        return [(each, _encoded(part)) for each, part in zip(taken, parts, strict=True)]

    def _read(self, asked: "_Open") -> Arrays:
        """Read tensors where they lie; what the JSON says of them is kept."""
        head = asked.body[: asked.json_bytes]
        layout = self._layouts.get(head)
        if layout is None:
            layout = self._layouts[head] = _layout_of(head)
        arrays = {
            name: np.frombuffer(asked.body, dtype, count, asked.json_bytes + start)
            for name, dtype, count, start in layout
        }
        dense: Any = np.stack([arrays[name] for name in self._dense], axis=1)
        ids: Any = np.stack([arrays[name] for name in self._sparse], axis=1) + self._starts
        return dense, ids


class _Open:
    """A request whose body is to come."""

    def __init__(self, server: OtherServer, json_bytes: int) -> None:
        self._server = server
        self.json_bytes = json_bytes
        self.body = b""
        self.done: Callable[[Answer], None] = _nobody

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        self.body, self.done = body, done
        self._server.submit(self)

    def abandon(self) -> None:
        """Nothing has begun."""


def _nobody(answer: Answer) -> None:
    raise RuntimeError("a request is answered before it came")


def _layout_of(head: bytes) -> _Layout:
    layout, start = [], 0
    for tensor in json.loads(head)["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        dtype = _DTYPES[tensor["datatype"]]
        layout.append((tensor["name"], dtype, size // np.dtype(dtype).itemsize, start))
        start += size
    return layout


def _encoded(values: npt.NDArray[np.float32]) -> Answer:
    data = values.astype("<f4").tobytes()
    output = {"name": "prediction", "datatype": "FP32", "shape": [len(values)],
              "parameters": {"binary_data_size": len(data)}}  # fmt: skip
    head = json.dumps({"outputs": [output]}, allow_nan=False).encode()
    return Answer(200, head + data, BINARY, [(JSON_BYTES_HEADER, str(len(head)))])


def main(kind: str, folder: Path, port: int, where: str) -> None:
    predict = open_other(kind, folder)
    columns = json.loads((folder / "columns.json").read_text())
    rows = len(np.load(folder / "rows.npy", mmap_mode="r"))
    each = rows // len(columns[1])
    application = OtherServer(predict, columns, each, in_thread=where == "thread")
    run_loop(serve(application, port))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
