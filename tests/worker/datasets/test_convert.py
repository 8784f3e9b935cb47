"""Public text formats to Parquet: values, splits, order, and lines that can't be read."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.datasets.convert import Layout, convert_criteo, convert_movielens
from worker.datasets.files import DatasetError

INTEGERS = [str(j) for j in range(1, 14)]
HEX = ["68fd1e64", "80e26c9b", "FB936136", *["a"] * 22, "ffffffffffffffff"]


def line(label: str = "1", integers: list[str] = INTEGERS, texts: list[str] = HEX) -> str:
    return "\t".join([label, *integers, *texts]) + "\n"


def numbered(count: int) -> str:
    return "".join(line(integers=[str(i), *INTEGERS[1:]]) for i in range(count))


def first_dense(path: Path) -> list[float]:
    column: list[float] = pq.read_table(path, columns=["I1"])["I1"].to_pylist()
    return column


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return tmp_path / "train.txt"


def test_criteo_values_become_float_and_the_integer_that_the_hex_says(
    text: Path, tmp_path: Path
) -> None:
    text.write_text(line("1", ["", "-3", *INTEGERS[2:]]) + line("0", texts=["", *HEX[1:]]))

    assert convert_criteo([text], tmp_path / "out", test_fraction=None) == {"train": 2}

    table = pq.read_table(tmp_path / "out/train/part-00000.parquet")
    assert table["label"].to_pylist() == [1.0, 0.0]
    assert table["I1"].to_pylist() == [None, 1.0]
    assert table["I2"].to_pylist() == [-3.0, 2.0]
    assert table["C1"].to_pylist() == [0x68FD1E64, None]
    assert table["C3"].to_pylist() == [0xFB936136] * 2
    assert table["C26"].to_pylist() == [-1, -1]
    assert table.schema.types == [pa.float32()] * 14 + [pa.int64()] * 26


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_last_line_may_end_in_any_way(text: Path, tmp_path: Path, ending: str) -> None:
    text.write_bytes((numbered(3).rstrip("\n") + ending).encode())

    assert convert_criteo([text], tmp_path / "out", test_fraction=0.4) == {"train": 2, "test": 1}


def test_last_rows_in_file_order_are_the_test_rows(tmp_path: Path) -> None:
    first, second = tmp_path / "day_0", tmp_path / "day_1.gz"
    first.write_text(numbered(5))
    second.write_bytes(gzip.compress(numbered(3).encode()))

    rows = convert_criteo([first, second], tmp_path / "out", test_fraction=0.5)

    assert rows == {"train": 4, "test": 4}
    assert first_dense(tmp_path / "out/train") == [0, 1, 2, 3]
    assert first_dense(tmp_path / "out/test") == [4, 0, 1, 2]


def test_layout_sets_rows_of_files_and_row_groups(text: Path, tmp_path: Path) -> None:
    text.write_text(numbered(11))
    layout = Layout(row_group_rows=2, rows_per_file=5)

    convert_criteo([text], tmp_path / "out", test_fraction=None, layout=layout)

    parts = [pq.ParquetFile(p) for p in sorted((tmp_path / "out/train").iterdir())]
    groups = [[p.metadata.row_group(g).num_rows for g in range(p.num_row_groups)] for p in parts]
    assert groups == [[2, 2, 1], [2, 2, 1], [1]]
    assert first_dense(tmp_path / "out/train") == list(range(11))


def test_split_without_rows_still_has_a_file_with_the_schema(text: Path, tmp_path: Path) -> None:
    text.write_text(numbered(2))

    convert_criteo([text], tmp_path / "out", test_fraction=0.1)

    test = pq.read_table(tmp_path / "out/test/part-00000.parquet")
    assert test.num_rows == 0
    assert test.schema.names[0] == "label"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("2"), r"train\.txt, line 4, column label: must be 0 or 1, got 2"),
        (line(""), r"train\.txt, line 4, column label: must be 0 or 1, got nothing"),
        ("\n", r"train\.txt, line 4, column label: must be 0 or 1, got nothing"),
        (line("x"), r"train\.txt, line 4, column label: .*'x'"),
        (line(integers=["1.5", *INTEGERS[1:]]), r"line 4, column I1: .*'1\.5'"),
        (line(texts=["xyz", *HEX[1:]]), r"line 4, column C1: .*hexadecimal.*b'xyz'"),
        (line(texts=["a" * 17, *HEX[1:]]), r"line 4, column C1: must be 1 to 16"),
        (line(integers=INTEGERS[1:]), r"train\.txt, line 4: .*Expected 40 columns, got 39"),
        (line().rstrip("\n") + "\tx\n", r"train\.txt, line 4: .*Expected 40 columns, got 41"),
    ],
)
def test_bad_criteo_line_is_named_and_nothing_is_left(
    text: Path, tmp_path: Path, bad: str, message: str
) -> None:
    text.write_text(numbered(3) + bad + numbered(1))

    with pytest.raises(DatasetError, match=message):
        convert_criteo([text], tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_line_numbers_count_over_blocks(text: Path, tmp_path: Path) -> None:
    good = numbered(20_000)  # more than two of the reader's blocks of 1 MiB
    assert len(good) > 2 << 20
    text.write_text(good + line(texts=["-", *HEX[1:]]))

    with pytest.raises(DatasetError, match="line 20001, column C1"):
        convert_criteo([text], tmp_path / "out")


def test_truncated_or_empty_criteo_file_is_refused(tmp_path: Path) -> None:
    cut, empty = tmp_path / "day_0.gz", tmp_path / "empty.txt"
    cut.write_bytes(gzip.compress(numbered(5000).encode())[:-20])
    empty.write_bytes(b"")

    with pytest.raises(DatasetError, match=r"day_0\.gz"):
        convert_criteo([cut], tmp_path / "out")
    with pytest.raises(DatasetError, match=r"empty\.txt"):
        convert_criteo([empty], tmp_path / "out")
    with pytest.raises(DatasetError, match=r"missing\.txt is not a file"):
        convert_criteo([tmp_path / "missing.txt"], tmp_path / "out")


# MovieLens

MOVIES = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les (1995)::Drama\n"
USERS = "1::F::1::10::48067\n2::M::56::16::02460-1\n"


def write_ml_1m(path: Path, ratings: str, movies: str = MOVIES) -> Path:
    path.mkdir()
    (path / "ratings.dat").write_text(ratings)
    (path / "movies.dat").write_text(movies, encoding="latin-1")
    (path / "users.dat").write_text(USERS)
    return path


def rows_of(out: Path, split: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(out / split).to_pylist()
    return rows


def test_ml_1m_rows_are_sorted_by_time_and_joined(tmp_path: Path) -> None:
    source = write_ml_1m(tmp_path / "ml-1m", "1::1::4::20\n2::2::3::10\n2::1::5::10\n")
    out = tmp_path / "out"

    assert convert_movielens(source, out) == {"train": 2, "valid": 0, "test": 1}

    train = rows_of(out, "train")
    assert [row["timestamp"] for row in train] == [10, 10]
    assert [row["movie_id"] for row in train] == [2, 1], "ties keep the file's order"
    assert train[0] == {
        "label": 0.0,
        "user_id": 2,
        "movie_id": 2,
        "genres": ["Drama"],
        "rating": 3.0,
        "timestamp": 10,
        "gender": "M",
        "age": 56,
        "occupation": 16,
        "zip": "02460-1",
    }
    assert rows_of(out, "test")[0]["genres"] == ["Animation", "Children's", "Comedy"]
    assert rows_of(out, "test")[0]["label"] == 1.0


def test_ml_latest_reads_quoted_titles_and_missing_genres(tmp_path: Path) -> None:
    source, out = tmp_path / "ml-latest", tmp_path / "out"
    source.mkdir()
    ratings = "".join(f"{i},{1 + i % 2},{3.5 + i % 2 / 2},{100 - i}\n" for i in range(10))
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    (source / "movies.csv").write_text(
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n'
        "2,Untitled,(no genres listed)\n"
    )

    assert convert_movielens(source, out) == {"train": 8, "valid": 1, "test": 1}

    table = pq.read_table(out / "train")
    assert table["timestamp"].to_pylist() == list(range(91, 99))
    assert table["genres"].to_pylist()[:2] == [[], ["Comedy", "Drama"]]
    assert table["label"].to_pylist()[:2] == [1.0, 0.0]
    assert rows_of(out, "valid")[0]["timestamp"] == 99
    assert rows_of(out, "test")[0]["timestamp"] == 100
    assert table.schema.field("genres").type == pa.list_(pa.string())


@pytest.mark.parametrize(
    ("ratings", "movies", "message"),
    [
        ("1::1::4::20\n1::1::4\n", MOVIES, r"ratings\.dat, line 2: .*Expected 4 columns, got 3"),
        ("1::1::4::20\n1::1::4::x\n", MOVIES, r"ratings\.dat, line 2, column timestamp: .*'x'"),
        ("1::1::4::20\n1::::4::20\n", MOVIES, r"ratings\.dat, line 2, column movie_id: .*empty"),
        ("1::9::4::20\n", MOVIES, "a rating names movie 9"),
        ("7::1::4::20\n", MOVIES, "a rating names user 7"),
        ("1::1::4::20\n", "1::Toy Story\n", r"movies\.dat, line 1"),
    ],
)
def test_bad_movielens_line_is_named_and_nothing_is_left(
    tmp_path: Path, ratings: str, movies: str, message: str
) -> None:
    source = write_ml_1m(tmp_path / "ml-1m", ratings, movies)

    with pytest.raises(DatasetError, match=message):
        convert_movielens(source, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_csv_line_numbers_count_the_header(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,T,Drama\n")
    for bad, message in (("1,1,x,5", "column rating"), ("1,1", "got 2"), (",1,4,5", "user_id")):
        (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n1,1,4,5\n{bad}\n")

        with pytest.raises(DatasetError, match=rf"ratings\.csv, line 3.*{message}"):
            convert_movielens(tmp_path, tmp_path / "out")


def test_directory_without_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither ratings\.dat .* nor ratings\.csv"):
        convert_movielens(tmp_path, tmp_path / "out")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,T,Drama\n")
    with pytest.raises(DatasetError, match="holds no ratings"):
        convert_movielens(tmp_path, tmp_path / "out")
