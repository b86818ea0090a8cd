"""Answers as Parquet parts, one per batch: whole or not there, and the same name for the same rows.

A part is written under a hidden name, flushed to the disk and renamed, so that a kill at any moment leaves whole parts
(and perhaps a hidden file, which readers skip). Its name is a hash of its rows' ids: whoever writes these rows again,
because the first writer's message got lost, replaces the part instead of adding one.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fsr.errors import UsageError, counted
from fsr.serving.batch.inputs import Row

__all__ = ["SCHEMA", "check_answered", "part_file", "read_parts", "sweep", "write_part"]

# tokens_*: visual tokens of the picture (of several: of all). seconds: the row's share of its batch. Null where a row
# has an error.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("error", pa.string()),
        ("tokens_before", pa.int32()),
        ("tokens_after", pa.int32()),
        ("n_focus", pa.int32()),
        ("method", pa.string()),
        ("keep", pa.string()),
        ("seconds", pa.float64()),
    ]
)


def part_file(folder: Path, rows: Sequence[Row]) -> Path:
    """Where the answers to these rows belong."""
    digest = hashlib.sha256("\n".join(row.id for row in rows).encode()).hexdigest()[:16]
    return folder / f"part-{digest}.parquet"


def write_part(file: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """All or nothing, and on the disk when it returns."""
    temporary = file.parent / f".{file.stem}-{uuid.uuid4().hex[:8]}"
    with temporary.open("wb") as f:
        pq.write_table(pa.Table.from_pylist([dict(a) for a in answers], schema=SCHEMA), f)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)  # the rename, too, must survive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_parts(folder: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """These columns of all parts.

    Raises:
        UsageError: a part that cannot be read.
    """
    parts = sorted(str(p) for p in folder.glob("part-*.parquet"))
    try:
        table = ds.dataset(parts, schema=SCHEMA, format="parquet").to_table(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"a part cannot be read ({reason}): delete it, its rows will be answered again.") from error
    return {name: table.column(name).to_pylist() for name in columns}


def check_answered(folder: Path, rows: Sequence[Row]) -> set[str]:
    """The ids that have been answered already.

    Raises:
        UsageError: the folder answers another input: an id stands for another picture or question there, is there
            twice, or is not in the input.
    """
    asked = {row.id: (row.image, row.question) for row in rows}
    found = read_parts(folder, ("id", "image", "question"))
    for name, image, question in zip(found["id"], found["image"], found["question"]):
        if name not in asked:
            raise UsageError(
                f"{str(folder)!r} answers row {name!r} ({image}: {question}), which the input does not have: rows may "
                "be added to an input, not taken away or changed. Give another --out."
            )
        if asked[name] != (image, question):
            raise UsageError(
                f"row {name!r} asks {asked[name][1]!r} about {asked[name][0]}, and {str(folder)!r} answered "
                f"{question!r} about {image}: give another --out."
            )
    twice = [name for name, count in Counter(found["id"]).items() if count > 1]
    if twice:
        raise UsageError(
            f"two answers for {counted(len(twice), 'row')} in {str(folder)!r} ({', '.join(twice[:3])}): two runs with "
            "different batch sizes wrote there at the same time. Delete the parts that repeat rows, or give another "
            "--out."
        )
    return set(found["id"])


def sweep(folder: Path) -> None:
    """Take away what killed writers left half written; nobody may be writing."""
    for rest in folder.glob(".part-*"):
        rest.unlink(missing_ok=True)
