import sys

import pytest

from runtime.storage import StorageError
from worker.data.data_files import TableName, s3_settings, table_name
from worker.data.planning import find_files


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("delta://data/t", TableName("delta", "data/t")),
        ("delta:///t@12", TableName("delta", "/t", 12)),
        ("delta:///a@b/t@c", TableName("delta", "/a@b/t@c")),
        ("delta:///t@1@2", TableName("delta", "/t@1", 2)),
        ("delta://s3://b/t?region=x@3", TableName("delta", "s3://b/t?region=x", 3)),
        ("iceberg://catalog/ns.t@5", TableName("iceberg", "catalog/ns.t", 5)),
        ("s3://delta/t@1", None),
        ("delta/t", None),
        ("delta://", None),
    ],
)
def test_tables_are_named_by_format_place_and_version(
    pattern: str, expected: TableName | None
) -> None:
    assert table_name(pattern) == expected
    assert expected is None or str(expected) == pattern


@pytest.mark.parametrize(
    ("place", "in_catalog"),
    [("c/ns.t", True), ("c/a.b.t", True), ("/c/t", False), ("./c/ns.t", False), ("~/t", False),
     ("s3://b/t", False)],
)  # fmt: skip
def test_an_iceberg_table_is_in_a_catalog_unless_its_place_is_a_path(
    place: str, in_catalog: bool
) -> None:
    assert TableName("iceberg", place).in_catalog == in_catalog
    assert not TableName("delta", place).in_catalog


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file:///a/b%20c", "/a/b%20c"),
        ("file:/a/b", "/a/b"),
        ("/a/b?c", "/a/b?c"),
        ("s3://b/x", "s3://b/x?region=r"),
        ("s3a://b/x", "s3a://b/x?region=r"),
        ("s3://other/x?", "s3://other/x??"),
    ],
)
def test_files_are_opened_with_the_options_of_their_table(path: str, expected: str) -> None:
    assert TableName("delta", "s3://b/t?region=r").located(path) == expected


def test_settings_of_s3_come_from_the_options_then_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert s3_settings("") == {}
    options = "region=r&endpoint_override=localhost:9&scheme=http&other=1"
    assert s3_settings(options) == {"region": "r", "endpoint": "http://localhost:9"}

    monkeypatch.setenv("AWS_REGION", "e")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all")
    assert s3_settings("") == {"region": "e", "endpoint": "http://all"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert s3_settings("region=r") == {"region": "r", "endpoint": "http://s3"}


@pytest.mark.parametrize(("form", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg")])
def test_a_package_that_is_missing_is_named(
    form: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails

    with pytest.raises(StorageError, match=rf"{package}.*pip install 'synchromesh\[tables\]'"):
        find_files([f"{form}:///nowhere/t"])
