"""The pages say what there is."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from scheduler.config import (
    ClusterConfig,
    DataConfig,
    EmbeddingConfig,
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
