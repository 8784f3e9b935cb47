"""The pages say what there is."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from scheduler.job.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    RunConfig,
    SparseConfig,
    TrainingConfig,
)
from scheduler.job.faults import DelayConfig, KillConfig, LossConfig, SlowConfig
from scheduler.job.model import EmbeddingConfig, ModelConfig, TableConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize(
    "section",
    [
        CheckpointConfig,
        ClusterConfig,
        DataConfig,
        DelayConfig,
        EmbeddingConfig,
        KillConfig,
        LossConfig,
        ModelConfig,
        RunConfig,
        SlowConfig,
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


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, id=f"{page}-{number}")
        for page in ("embedding.md", "compositions.md")
        for number, example in enumerate(examples(page))
    ],
)
def test_examples_print_what_their_comments_say(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "example", "exec"), {})

    said = re.findall(r"^print.*?  # (.*)", example, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == len(printed) > 0
    assert all(comment.startswith(line) for comment, line in zip(said, printed, strict=True))


ROOT = DOCS.parent
NAMED = re.compile(
    r"(?<![\w/])((?:benchmarks|embedding|ps|runtime|scheduler|scripts|serving|simulation|synchromesh|tests"
    r"|worker)/[\w/]+\.py)\b"
)


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda page: page.name
)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    missing = [name for name in NAMED.findall(page.read_text()) if not (ROOT / name).exists()]

    assert missing == []
