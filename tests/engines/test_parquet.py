"""Parquet as other programs write it: categories, views, structs; what holds no pictures is refused before the job."""

import pytest

from fsr.errors import UsageError
from fsr.serving.batch.inputs import read_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PATHS, QUESTIONS = ["a.png", "b.png", "a.png"], ["where is the dog?"] * 3


def written(tmp_path, image, **others):
    table = pa.table({"image": image, "question": QUESTIONS, **others})
    pq.write_table(table, tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def struct(*kinds):
    return pa.struct(list(kinds))


TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
BINARIES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("categories", [False, True])
def test_paths_of_every_type_stay_paths(tmp_path, kind, categories):
    image = pa.array(PATHS, kind if not categories or kind == pa.string_view() else pa.dictionary(pa.int32(), kind))
    rows = read_rows(written(tmp_path, image))
    assert [r.image for r in rows] == PATHS and all(r.place is None and r.error is None for r in rows)
    assert {r.question for r in rows} == set(QUESTIONS)


@pytest.mark.parametrize("kind", BINARIES)
def test_bytes_of_every_type_are_embedded(tmp_path, kind):
    rows = read_rows(written(tmp_path, pa.array([b"x", b"y", b"z"], kind)))
    assert [(r.image, r.place) for r in rows] == [(f"in.parquet#{i}", i) for i in range(3)]


def test_categories_of_bytes_and_of_questions(tmp_path):
    image = pa.array([b"x", b"y", b"x"]).dictionary_encode()
    file = written(tmp_path, image, id=pa.array(["1", "2", "3"]).dictionary_encode())
    assert [(r.id, r.place) for r in read_rows(file)] == [("1", 0), ("2", 1), ("3", 2)]


@pytest.mark.parametrize(
    "kind",
    [
        struct(("bytes", pa.binary()), ("path", pa.string())),
        struct(("bytes", pa.large_binary())),
        struct(("path", pa.large_string())),
        struct(("bytes", pa.null()), ("path", pa.string())),
    ],
)
def test_structs_of_datasets(tmp_path, kind):
    value = {kind.field(i).name: None for i in range(kind.num_fields)}
    rows = read_rows(written(tmp_path, pa.array([value] * 3, kind)))
    assert [r.place for r in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    "image",
    [
        pa.array([["a.png"]] * 3),
        pa.array([[b"x"]] * 3),
        pa.array([[{"bytes": b"x", "path": "a"}]] * 3),
        pa.array([None] * 3),
        pa.array([1, 2, 3]),
        pa.array([{"bytes": "text", "path": 1}] * 3),
        pa.array([{"url": "a.png"}] * 3),
        pa.array([1, 2, 1]).dictionary_encode(),
    ],
)
def test_what_holds_no_picture_per_row_is_refused_before_the_job(tmp_path, image):
    with pytest.raises(UsageError, match=r"the column `image` of in\.parquet holds .*one picture per row"):
        read_rows(written(tmp_path, image))


def test_a_folder_of_parts_is_named(tmp_path):
    written(tmp_path, pa.array(PATHS))
    for question in (None, "what?"):
        with pytest.raises(UsageError, match="parts of Parquet"):
            read_rows(tmp_path, question)


def test_pandas_categories(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"image": PATHS, "question": QUESTIONS}).astype("category")
    frame.to_parquet(tmp_path / "in.parquet")
    rows = read_rows(tmp_path / "in.parquet")
    assert [r.image for r in rows] == PATHS and [r.question for r in rows] == QUESTIONS


def test_true_is_no_id(tmp_path):
    rows = read_rows(written(tmp_path, pa.array(PATHS), id=pa.array(["x", "y", "z"])))
    assert [r.id for r in rows] == ["x", "y", "z"]
    with pytest.raises(UsageError, match="`id` must be text"):
        read_rows(written(tmp_path, pa.array(PATHS), id=pa.array([True, False, True])))
