"""The pages say what there is."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from scheduler.config import (
    ClusterConfig,
    DataConfig,
    EmbeddingConfig,
    ModelConfig,
    RunConfig,
    SparseConfig,
    TableConfig,
    TrainingConfig,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize(
    "section",
    [
        ClusterConfig,
        DataConfig,
        EmbeddingConfig,
        ModelConfig,
        RunConfig,
        SparseConfig,
        TableConfig,
        TrainingConfig,
    ],
    ids=lambda section: section.__name__,
)
def test_every_key_of_the_job_file_is_on_its_page(section: type[BaseModel]) -> None:
    page = (DOCS / "jobs.md").read_text()

    missing = [name for name in section.model_fields if f"{name}" not in page]

    assert missing == []


def test_the_example_of_looking_into_a_table_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (DOCS / "embedding.md").read_text().split("## Looking into a table\n")[1]
    example = section.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "embedding.md", "exec"), {})

    said = re.findall(r"^print.*# (\[.*?\])", example, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said
