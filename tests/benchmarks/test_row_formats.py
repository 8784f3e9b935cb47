"""The benchmark of rows of fewer bits, at sizes whose figures mean nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import row_formats

DTYPES = ["float32", "float16", "bfloat16", "int8"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_type_of_values_is_timed_beside_float32(capsys: pytest.CaptureFixture[str]) -> None:
    assert row_formats.main(["--speed", "--quick"]) == 0

    found = lines(capsys)
    assert [(line["name"], line["value_dtype"]) for line in found] == [
        (name, dtype) for name in ("pull", "apply") for dtype in DTYPES
    ]
    assert found[0]["times_float32"] == 1
    sizes = [line["bytes_a_row"] for line in found[:4]]
    assert sizes[0] - sizes[1] == pytest.approx(32, abs=0.1)
    assert sizes[0] - sizes[3] == pytest.approx(44, abs=0.1)


def test_a_case_is_compared_with_float32_of_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def trained(config: Any, prepared: object) -> tuple[float, float]:
        dtype = DTYPES.index(config.embedding.value_dtype)
        assert config.embedding.optimizer.type == "rowwise_adagrad"
        return 0.7 + 0.01 * config.seed + 0.001 * dtype * config.seed, 100.0 - dtype

    monkeypatch.setattr(row_formats, "trained", trained)
    arguments = ["--quick", "--data", str(tmp_path), "--optimizers", "rowwise_adagrad"]
    assert row_formats.main(arguments) == 0

    found = lines(capsys)
    assert [line["value_dtype"] for line in found] == DTYPES
    assert found[3]["differences"] == [0.003, 0.006]
    assert found[3]["difference"] == 0.0045
    assert found[3]["standard_error"] == 0.0015
    assert found[3]["bytes_a_row"] == 97
