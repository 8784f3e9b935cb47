"""Job files say every key once; PyYAML alone would keep the last one in silence."""

import json
from pathlib import Path

import pytest

from scheduler import ConfigError, JobConfig
from scheduler.job.job_yaml import JobYamlError, read_yaml

JOB = """\
data: {train: x, sparse: [a]}
model: {type: wide_deep}
run: {dir: d}
training: {mode: sync}
tables:
  a: {dim: 4}
"""


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        (JOB + "training: {max_seconds: 5}\n", "training", (4, 7)),
        (JOB + "  a: {dim: 8}\n", "a", (6, 7)),
        ("a:\n  - b: 1\n    c: 2\n    b: 3\n", "b", (2, 4)),
        ("{a: 1, 'a': 2}", "a", (1, 1)),
        ("1: x\n1: y\n", "1", (1, 2)),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(
    text: str, key: str, lines: tuple[int, int]
) -> None:
    with pytest.raises(JobYamlError) as caught:
        read_yaml(text)

    assert f"{key!r} is there twice, on line {lines[0]} and on line {lines[1]}" in str(caught.value)


def test_a_job_file_with_a_section_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB + "training: {max_seconds: 5}\n")

    with pytest.raises(ConfigError, match=r"job\.yaml: key 'training' is there twice"):
        JobConfig.from_yaml(path)


def test_an_override_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)

    with pytest.raises(ConfigError, match=r"override 'model\.optimizer="):
        JobConfig.from_yaml(path, ["model.optimizer={type: sgd, type: adam}"])


def test_what_a_merge_brings_in_may_be_said_again_wherever_it_stands() -> None:
    text = "a: &a {dim: 1, rate: 2}\nb: {n: &b {<<: *a, dim: 3}}\nc: {<<: *b, rate: 4}\n"

    assert read_yaml(text) == {
        "a": {"dim": 1, "rate": 2},
        "b": {"n": {"dim": 3, "rate": 2}},
        "c": {"dim": 3, "rate": 4},
    }


def test_the_same_key_in_several_mappings_is_fine() -> None:
    assert read_yaml("a: {x: 1}\nb: {x: 1}\n") == {"a": {"x": 1}, "b": {"x": 1}}


def test_what_is_no_yaml_is_refused_with_its_place() -> None:
    with pytest.raises(JobYamlError, match=r"(?s)not valid YAML.*line 1"):
        read_yaml("a: [1")


@pytest.mark.parametrize("text", ["010", "-0_17", "00", "1:30", "1:30:05.5"])
def test_numbers_that_are_not_what_they_seem_are_refused(text: str) -> None:
    with pytest.raises(JobYamlError, match=rf"{text} on line 2 is the number .* to YAML"):
        read_yaml(f"a: 1\nb: [{text}]\n")


def test_quoted_numbers_and_other_ways_to_write_them_stay() -> None:
    text = "[0, 10, 0x10, 0.5, 2_048, 1e-3, '010', \"1:30\", 09, 12:30x]"

    assert read_yaml(text) == [0, 10, 16, 0.5, 2048, "1e-3", "010", "1:30", "09", "12:30x"]


@pytest.mark.parametrize("text", ["[" * 5000, "{" * 5000, "a: " + "[" * 5000 + "]" * 5000])
def test_what_is_nested_too_deeply_is_refused(text: str) -> None:
    with pytest.raises(JobYamlError, match="nested too deeply"):
        read_yaml(text)


def test_a_character_that_json_writes_as_two_escapes_is_one() -> None:
    text = json.dumps({"column": "a \N{GRINNING FACE}"})

    assert "\\ud83d\\ude00" in text
    assert read_yaml(text) == {"column": "a \N{GRINNING FACE}"}


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ude00\\ud83d"])
def test_half_a_character_is_refused_which_no_file_can_hold(half: str) -> None:
    with pytest.raises(JobYamlError, match=r"line 2 has half a character"):
        read_yaml(f'a: 1\nb: "{half}"')


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "a0: &a0 {b: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "a: &a [1, *a]",
        "a: &a {b: *a}",
    ],
)
def test_aliases_that_make_a_mountain_of_a_text_are_refused(text: str) -> None:
    with pytest.raises(JobYamlError, match="its aliases"):
        read_yaml(text)


def test_aliases_are_values_wherever_they_stand() -> None:
    text = "a: &a {b: [1, 2]}\nc: [*a, *a]\nd: {<<: *a, e: 3}"

    assert read_yaml(text) == {
        "a": {"b": [1, 2]},
        "c": [{"b": [1, 2]}, {"b": [1, 2]}],
        "d": {"b": [1, 2], "e": 3},
    }


def test_a_text_of_nothing_is_nothing() -> None:
    assert read_yaml("") is None
    assert read_yaml("# nothing\n") is None
