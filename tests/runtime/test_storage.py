import pickle

import pytest
from pyarrow import fs as pafs

from runtime.storage import NoSuchFileError, StorageError, open_filesystem


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


@pytest.mark.parametrize("scheme", ["s3a", "s3n"])
def test_hadoops_names_of_s3_are_s3(scheme: str) -> None:
    options = "?region=us-east-1&endpoint_override=localhost:1"

    filesystem, path = open_filesystem(f"{scheme}://bucket/day=1/a%2Fb.parquet{options}")

    assert isinstance(filesystem, pafs.S3FileSystem)
    assert path == "bucket/day=1/a%2Fb.parquet"
