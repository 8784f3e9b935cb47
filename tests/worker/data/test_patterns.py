import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from runtime.storage import NoSuchFileError, StorageError, open_filesystem
from worker.data.patterns import _Folder, expand, folder_values, natural_order


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
        filesystem.pipe(f"/patterns-test/{name}.parquet", name.encode())
    yield "memory://patterns-test"
    filesystem.rm("/patterns-test", recursive=True)


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


def test_files_of_a_pattern_are_in_order_and_patterns_keep_their_order(tree: Path) -> None:
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
    names = ["p=a%2Fb/x y.parquet", "p=é/day[1].parquet", "p=é/what?.parquet"]
    for name in names:
        (tree / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "odd" / name).write_bytes(name.encode())

    urls = expand([f"file://{tree}/odd/**/*.parquet"])

    assert urls[:2] == [f"file://{tree}/odd/{name}" for name in names[:2]]
    assert [content(url).decode() for url in urls] == names
    assert [expand([url]) for url in urls] == [[url] for url in urls]
    assert expand([f"file://{tree}"]) == [f"file://{tree}/{n}.parquet" for n in "ab"]


def test_what_exists_under_a_name_is_meant_by_it(tmp_path: Path) -> None:
    for name in (
        "day1/x.parquet",
        "day[1]/x.parquet",
        "day[1]/y[0-9].parquet",
        "day[1]/y7.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert relative(tmp_path, "day[1]/x.parquet") == ["day[1]/x.parquet"]
    assert relative(tmp_path, "day[1]/y[0-9].parquet") == ["day[1]/y[0-9].parquet"]
    assert relative(tmp_path, "day[1]/?.parquet") == ["day[1]/x.parquet"]
    assert len(relative(tmp_path, "day[1]")) == 3
    assert relative(tmp_path, "day[12]/x.parquet") == ["day1/x.parquet"]
    assert relative(tmp_path, "day[[]1]/x.parquet") == ["day[1]/x.parquet"]


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
    assert len(expand(["listed://patterns-test"])) == 2

    fsspec.filesystem("memory").pipe("/patterns-test/c.parquet", b"c")

    assert len(expand(["listed://patterns-test"])) == 3


def test_numbers_in_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = ["part.0", "part.1", "part.2", "part.10", "part.11", "part.100"]
    for name in names:
        (tmp_path / f"{name}.parquet").touch()

    assert relative(tmp_path, "") == [f"{name}.parquet" for name in names]


@pytest.mark.parametrize(
    "in_order",
    [
        ["a-1", "a.1", "a1", "a1b", "aa"],  # beside other characters as the digits would be
        ["part-00002", "part-00010", "part-00100"],
        ["x", "x1", "x01y", "x1y", "x2"],  # equal numbers: what follows decides
        ["v01.9", "v1.09", "v1.9", "v1.10"],  # all equal but for zeros: as text
        ["d/2/10", "d/10/2"],
    ],
)
def test_the_order_of_paths_differs_from_that_of_text_in_numbers_only(in_order: list[str]) -> None:
    backwards = in_order[::-1]

    assert sorted(backwards, key=natural_order) == in_order


def test_folders_of_a_folder_without_files_are_walked_by_their_values(tmp_path: Path) -> None:
    names = ["code=2/a.parquet", "code=10/day=1/a.parquet", "code=10/day=1/b.parquet"]
    for name in (*names, "code=2/deep/a.parquet", "_tmp=1/a.parquet", "other/a.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert relative(tmp_path, "") == names

    (tmp_path / "top.parquet").touch()
    assert relative(tmp_path, "") == ["top.parquet"]


def test_a_folder_of_other_folders_says_how_to_read_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1" / "a.parquet").touch()

    with pytest.raises(NoSuchFileError) as caught:
        expand([str(tmp_path)])

    assert f"write {tmp_path}/**/*.parquet" in str(caught.value)
    assert len(expand([f"{tmp_path}/**/*.parquet"])) == 1


def test_folders_say_values_as_spark_writes_them() -> None:
    path = "s3://bucket/code=00/p=a b%2Fc%3Dd/n=__HIVE_DEFAULT_PARTITION__/e=/x=1=2/=z/f=1.parquet"

    assert folder_values(path) == {"code": "00", "p": "a b/c=d", "n": None, "e": "", "x": "1=2"}
    assert folder_values("/data/a=1/b%3Dc=%C3%A9/a=+2/x.parquet") == {"a": "+2", "b=c": "é"}
    assert folder_values("a=%E9/x.parquet") == {"a": "%E9"}


@pytest.fixture(params=["_delta_log", "metadata", ".hoodie"])
def table_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    table = tmp_path / "store" / "t"
    (table / "day=1").mkdir(parents=True)
    (table / request.param).mkdir()
    (table / request.param / "00001-x.metadata.json").touch()
    for name in ("store/t/a.parquet", "store/t/day=1/b.parquet", "store/c.parquet"):
        (tmp_path / name).touch()
    return table


@pytest.mark.parametrize(
    "pattern",
    ["store/t", "store/t/a.parquet", "store/t/day=1", "store/t/**/*.parquet", "store/*/a.*",
     "store/**/*.parquet", "store/t/day=*/b.parquet"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_of_a_table_are_refused_with_what_to_write(
    table_folder: Path, pattern: str, scheme: str
) -> None:
    named = f"{scheme}{table_folder}"
    expected = {
        "_delta_log": f"delta://{named} ",
        "metadata": f"iceberg://{named} ",
        ".hoodie": "Hudi tables can't be read",
    }
    mark = next(mark for mark in expected if (table_folder / mark).exists())

    with pytest.raises(StorageError) as caught:
        expand([f"{scheme}{table_folder.parents[1]}/{pattern}"])

    assert expected[mark] in str(caught.value)
    assert caught.value.url.endswith(pattern)


@pytest.mark.parametrize("pattern", ["folder", "file.parquet", "*/*.parquet", "*.parquet"])
def test_links_into_a_table_lead_into_the_table(table_folder: Path, pattern: str) -> None:
    links = table_folder.parents[1] / "links"
    links.mkdir()
    (links / "folder").symlink_to(table_folder / "day=1")
    (links / "file.parquet").symlink_to(table_folder / "a.parquet")

    with pytest.raises(StorageError, match=f"{table_folder} is a table"):
        expand([f"{links}/{pattern}"])


@pytest.mark.parametrize("pattern", ["store", "store/*", "store/**/c.parquet"])
def test_files_beside_a_table_are_read(table_folder: Path, pattern: str) -> None:
    assert relative(table_folder.parents[1], pattern) == ["store/c.parquet"]


def test_a_folder_of_metadata_alone_makes_no_table(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "about.json").touch()
    (tmp_path / "a.parquet").touch()

    assert relative(tmp_path, "") == ["a.parquet"]


def test_folders_are_asked_once_whether_they_are_tables(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    table = _Folder.table

    def counted(folder: _Folder) -> str | None:
        asked.append(folder.path)
        return table(folder)

    monkeypatch.setattr(_Folder, "table", counted)
    expand([f"{tree}/a.parquet", f"{tree}/b.parquet", f"{tree}/**/*.parquet"])

    assert str(tree) in asked
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/**/*.parquet", "/b.*"])
def test_a_link_that_leads_nowhere_is_not_left_out(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.parquet").touch()
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone.parquet")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "gone.txt")

    with pytest.raises(StorageError, match=r"b\.parquet is a link to what is not there"):
        expand([f"{tmp_path}{pattern}"])

    assert expand([f"{tmp_path}/a*"]) == [str(tmp_path / "a.parquet")]


def test_what_is_neither_a_file_nor_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")

    with pytest.raises(StorageError, match="is neither a file nor a folder"):
        expand([str(tmp_path)])


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/day*", "/**/*.parquet"])
def test_a_folder_with_the_name_of_a_file_is_read_where_that_is(
    tmp_path: Path, pattern: str
) -> None:
    """As Spark writes `day1.parquet`: its rows would be missing beside those of day2.parquet."""
    names = ["day1.parquet/part-0.parquet", "day1.parquet/part-1.parquet", "day2.parquet"]
    (tmp_path / "day1.parquet").mkdir()
    for name in [*names, "day1.parquet/_SUCCESS"]:
        (tmp_path / name).touch()

    assert expand([f"{tmp_path}{pattern}"]) == [str(tmp_path / name) for name in names]


def test_a_table_with_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet" / "_delta_log").mkdir(parents=True)
    for name in ("t.parquet/part-0.parquet", "a.parquet"):
        (tmp_path / name).touch()

    with pytest.raises(StorageError, match=r"t\.parquet is a table \(Delta\)"):
        expand([str(tmp_path)])


def test_a_folder_of_files_with_another_ending_says_how_to_read_them(tmp_path: Path) -> None:
    (tmp_path / "day1.pq").touch()

    with pytest.raises(NoSuchFileError, match=r"only \*\.parquet are read, and it has .*day1\.pq"):
        expand([str(tmp_path)])
