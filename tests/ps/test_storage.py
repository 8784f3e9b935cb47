import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from ps.storage import NoSuchFileError, StorageError, expand, open_filesystem


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.parquet", "a.parquet", "notes.txt", "_hidden.parquet", ".tmp.parquet",
        "day=1/x.parquet", "day=2/x.parquet", "day=2/deep/y.parquet", "empty/readme",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    for name in ("b", "a"):
        filesystem.pipe(f"/storage-test/{name}.parquet", name.encode())
    yield "memory://storage-test"
    filesystem.rm("/storage-test", recursive=True)


def content(path: str) -> bytes:
    filesystem, inner = open_filesystem(path)
    with filesystem.open_input_file(inner) as source:
        return source.read()


def relative(tree: Path, pattern: str) -> list[str]:
    return [os.path.relpath(path, tree) for path in expand([f"{tree}/{pattern}"])]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.parquet", ["a.parquet"]),
        ("notes.txt", ["notes.txt"]),
        ("", ["a.parquet", "b.parquet"]),
        ("*", ["a.parquet", "b.parquet", "notes.txt"]),
        ("?.parquet", ["a.parquet", "b.parquet"]),
        ("[b-z].parquet", ["b.parquet"]),
        ("_*.parquet", ["_hidden.parquet"]),
        ("day=*/*.parquet", ["day=1/x.parquet", "day=2/x.parquet"]),
        ("day=*/x.parquet", ["day=1/x.parquet", "day=2/x.parquet"]),
        (
            "**/*.parquet",
            [
                "a.parquet",
                "b.parquet",
                "day=1/x.parquet",
                "day=2/deep/y.parquet",
                "day=2/x.parquet",
            ],
        ),
        ("day=2/**", ["day=2/deep/y.parquet", "day=2/x.parquet"]),
        ("**/deep/*", ["day=2/deep/y.parquet"]),
    ],
)
def test_patterns_name_files(tree: Path, pattern: str, expected: list[str]) -> None:
    assert relative(tree, pattern) == expected


def test_files_of_a_pattern_are_sorted_and_patterns_keep_their_order(tree: Path) -> None:
    paths = expand([f"{tree}/day=2", f"{tree}/*.parquet", f"{tree}/a.parquet"])

    names = [os.path.relpath(path, tree) for path in paths]
    assert names == ["day=2/x.parquet", "a.parquet", "b.parquet", "a.parquet"]


def test_relative_and_home_paths_become_absolute(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    monkeypatch.setenv("HOME", str(tree))

    assert expand(["a.parquet", "*.txt", "~/b.parquet"]) == [
        f"{tree}/{name}" for name in ("a.parquet", "notes.txt", "b.parquet")
    ]
    assert content("a.parquet") == b"a.parquet"


@pytest.mark.parametrize("pattern", ["none.parquet", "none/*.parquet", "*.csv", "empty", "n/**/x"])
def test_a_pattern_without_a_file_is_named(tree: Path, pattern: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        expand([f"{tree}/a.parquet", f"{tree}/{pattern}"])

    assert isinstance(caught.value, NoSuchFileError)
    assert caught.value.url == f"{tree}/{pattern}"
    assert f"{tree}/{pattern}" in str(caught.value)


def test_file_urls_are_expanded_to_urls_that_open(tree: Path) -> None:
    (tree / "with%20escape.parquet").write_bytes(b"odd")

    urls = expand([f"file://{tree}/*.parquet"])

    assert urls[0] == f"file://{tree}/a.parquet"
    assert [content(url) for url in urls] == [b"a.parquet", b"b.parquet", b"odd"]
    assert content(f"file://{tree}/with%2520escape.parquet") == b"odd"
    assert expand([f"file://{tree}"]) == urls


def test_memory_urls_go_through_fsspec(memory: str) -> None:
    assert isinstance(open_filesystem(memory)[0], pafs.PyFileSystem)
    assert expand([memory]) == expand([f"{memory}/*.parquet"])
    assert [content(url) for url in expand([memory])] == [b"a", b"b"]
    with pytest.raises(NoSuchFileError, match="none"):
        expand([f"{memory}/none*"])


class _Listed(MemoryFileSystem):
    """Keeps listings, as clients of remote stores do."""

    protocol = "listed"
    kept: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("listed://", "memory://"))

    def find(self, path: str, **options: Any) -> Any:
        if path not in self.kept:
            self.kept[path] = super().find(path, **options)
        return self.kept[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.kept.clear()


def test_files_written_later_are_seen(memory: str) -> None:
    fsspec.register_implementation("listed", _Listed, clobber=True)
    assert len(expand(["listed://storage-test"])) == 2

    fsspec.filesystem("memory").pipe("/storage-test/c.parquet", b"c")

    assert len(expand(["listed://storage-test"])) == 3


@pytest.mark.parametrize("url", ["file:///a/b/c.parquet", "file:///", "mock-free/x"])
def test_paths_in_the_filesystem_are_absolute(url: str) -> None:
    filesystem, path = open_filesystem(url)

    assert isinstance(filesystem, pafs.LocalFileSystem)
    assert path.startswith("/")
    assert url.removeprefix("file://").strip("/") in path


@pytest.mark.parametrize("url", ["nosuchstore://a/b", "file://elsewhere/x"])
def test_a_url_that_nothing_opens_is_named(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_filesystem(url)

    assert caught.value.url == url
    assert url in str(caught.value)


@pytest.mark.parametrize("kind", [StorageError, NoSuchFileError])
def test_errors_survive_pickling(kind: type[StorageError]) -> None:
    error = kind("s3://b/x", "there is no such file", "Correct the path")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert (copy.url, str(copy)) == ("s3://b/x", str(error))
