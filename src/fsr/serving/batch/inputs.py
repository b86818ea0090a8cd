"""What `fsr batch` is asked: a folder of pictures, JSONL or Parquet as rows with an id that stays the same.

- **Folder**: every picture in it and below it, in the order of their paths; all get the one question of `--question`.
- **JSONL**: an object per line with `image` (a path, relative to the file's own folder, or a list of paths for several
  pictures in one prompt), `question` and perhaps `id`.
- **Parquet**: columns of these names; `image` holds paths, the bytes of picture files, or `datasets`' struct of both.

An id is the one given, else a hash of picture and question with `-2`, `-3`, ... on repetitions: it does not depend on
what else the input holds. Two rows with the same given id are an error; a question that is there twice is answered
twice. Nothing here opens a picture: the workers do.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsr.errors import UsageError
from fsr.signals.question import check_characters

__all__ = ["PICTURES", "Row", "cut", "read_rows"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Row:
    """One question about one picture, or about several.

    image: a path as the input has it, or FILE#ROW for a picture inside a Parquet file; None where it has neither. Of
    several the JSON list of their paths, which are also in `images`.
    place: that row of the Parquet file; None for a path.
    error: why this row cannot be asked, found while reading.
    """

    id: str
    image: str | None
    question: str | None
    place: int | None = None
    error: str | None = None
    images: Sequence[str] | None = None


def read_rows(source: Path, question: str | None = None) -> list[Row]:
    """All rows of the input, in its order. A line that cannot be read is a row with an error.

    question: for rows that bring none.

    Raises:
        UsageError: no such input, an unknown kind, missing columns, no row that can be asked, or an id given twice.
    """
    if question is not None and not question.strip():
        raise UsageError("--question is empty: write what you want to know about the pictures.")
    check_characters(question or "", "--question")
    if source.is_dir():
        if any(source.glob("*.parquet")) and not _pictures(source):
            raise UsageError(
                f"{str(source)!r} holds parts of Parquet, which are not read as one: give a .parquet file."
            )
        if question is None:
            raise UsageError("a folder holds no questions: give --question, the same for every picture.")
        found = [{"image": path} for path in _pictures(source)]
    elif not source.is_file():
        raise UsageError(f"no file or folder {str(source)!r}: give a folder of pictures, a .jsonl or a .parquet file.")
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        found = list(_lines(source))
    elif source.suffix.lower() == ".parquet":
        found = list(_parquet(source, question is not None))
    else:
        raise UsageError(f"{source.name} is neither .jsonl nor .parquet: give one of these, or a folder of pictures.")
    rows = _identified([{"question": question} | {k: v for k, v in r.items() if v is not None} for r in found])
    if not rows:
        where = f"no picture ({', '.join(PICTURES)}) lies in" if source.is_dir() else "no row is in"
        raise UsageError(f"{where} {str(source)!r}: nothing to answer.")
    if all(row.error for row in rows):
        raise UsageError(f"no row of {source.name} can be read; the first: {rows[0].error}")
    return rows


def cut(rows: Sequence[Row], done: Mapping[str, Any], size: int) -> list[list[Row]]:
    """Batches of at most `size` rows, without those in `done`.

    They are cut before the answered rows are taken out: a run that goes on makes the very batches that the one before
    it did not finish, so a worker of that one, still busy somewhere, writes the same parts and no others.
    """
    batches = ([r for r in rows[i : i + size] if r.id not in done] for i in range(0, len(rows), size))
    return [batch for batch in batches if batch]


# ----------------------------------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[str]:
    """Hidden files and folders are left out: systems keep things there that only look like pictures."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    return sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            yield {"error": f"line {number} is not JSON ({error}): write one object per line.", "key": line.hex()}
            continue
        yield _checked(value, f"line {number}", line.hex())


def _checked(value: Any, where: str, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"error": f"{where} is no object: write {{'image': ..., 'question': ...}}.", "key": key}
    row = {name: value.get(name) for name in ("id", "image", "question")}
    if isinstance(row["image"], list) and row["image"] and all(isinstance(path, str) for path in row["image"]):
        row |= {"images": row["image"], "image": json.dumps(row["image"], ensure_ascii=False)}
    if row["id"] is not None and (isinstance(row["id"], bool) or not isinstance(row["id"], str | int)):
        return {"error": f"{where}: `id` must be text or a whole number.", "key": key}
    for name in ("image", "question"):
        if row[name] is not None and not isinstance(row[name], str):
            kind = "text or a list of paths" if name == "image" else "text"
            error = f"{where}: `{name}` must be {kind}, not {type(row[name]).__name__}."
            return {"id": row["id"], "error": error, "key": key}
    return row


def _parquet(file: Path, has_question: bool) -> Iterator[dict[str, Any]]:
    """The text columns. Embedded pictures are not read, only numbered."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        names = [n for n in ("image", "question") if n not in schema.names and not (n == "question" and has_question)]
        if names:
            raise UsageError(f"{file.name} has no column {' and no '.join(names)}, only {', '.join(schema.names)}.")
        embedded = _is_embedded(schema.field("image").type, file.name)
        wanted = [n for n in ("id", "question") if n in schema.names] + ([] if embedded else ["image"])
        table = pq.read_table(file, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file.name} is not readable Parquet ({' '.join(str(error).split())[:120]}).") from error
    for place, value in enumerate(table.to_pylist()):
        row = _checked(value, f"row {place}", str(place))
        yield row | ({"image": f"{file.name}#{place}", "place": place} if embedded else {})


def _is_embedded(kind: Any, name: str) -> bool:
    """False for a column of paths, True for bytes of picture files or `datasets`' struct; categories and views of them
    too.

    Raises:
        UsageError: neither.
    """
    import pyarrow as pa

    def value(kind: Any) -> Any:
        while isinstance(kind, pa.DictionaryType | pa.BaseExtensionType):
            kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind.storage_type
        return kind

    def among(kind: Any, *names: str) -> bool:
        return any(getattr(pa.types, f"is_{name}", lambda _: False)(value(kind)) for name in names)

    texts, binaries = ("string", "large_string", "string_view"), ("binary", "large_binary", "binary_view")
    if among(kind, *texts):
        return False
    if among(kind, *binaries):
        return True
    plain = value(kind)
    if pa.types.is_struct(plain):
        fields = {plain.field(i).name: plain.field(i).type for i in range(plain.num_fields)}
        if any(among(t, *(binaries if n == "bytes" else texts)) for n, t in fields.items() if n in ("bytes", "path")):
            return True
    raise UsageError(
        f"the column `image` of {name} holds {str(kind)[:80]}: give paths, the bytes of picture files, or a struct of "
        "`bytes` and `path`, one picture per row."
    )


def _identified(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    hashed: Counter[str] = Counter()
    rows = []
    for r in found:
        image, question, error = r.get("image"), r.get("question"), r.get("error")
        if error is None and image is None:
            error = "the row has no `image`: give a path."
        if r.get("id") is not None:
            name = str(r["id"])
        else:
            text = json.dumps([image, question, r.get("key")])
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            hashed[digest] += 1
            name = digest if hashed[digest] == 1 else f"{digest}-{hashed[digest]}"
        fields = [_storable(value) for value in (name, image, question)]
        if fields != [name, image, question]:
            error = "the row holds characters that are no Unicode text: write it as UTF-8."
        rows.append(Row(str(fields[0]), fields[1], fields[2], r.get("place"), error, r.get("images")))
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise UsageError(f"{len(twice)} ids are given more than once ({', '.join(twice[:3])}): an id names one row.")
    return rows


def _storable(text: str | None) -> str | None:
    """What Parquet can hold: half characters, as file names and JSON may have, become question marks."""
    return None if text is None else text.encode("utf-8", "replace").decode()
