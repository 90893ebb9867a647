"""A name for the rows of a data set: the same for the same contents, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow
import xxhash


def data_fingerprint(examples: Any) -> str | None:
    """A checksum of the columns and rows behind some examples, in their order; None where they are read as a stream.

    Pictures and sounds that lie in files of their own count by the files' sizes and times.
    """
    # examples of which a row has several, such as windows of a text, have their rows apart
    table = getattr(getattr(examples, "rows", examples), "table", None)
    if not isinstance(table, datasets.Dataset):
        return None
    digest = xxhash.xxh3_128(str(table.features).encode())
    for rows in table.with_format("arrow").iter(batch_size=1000):
        # copied, so that one content has one form: a part of a file has offsets and bits of its neighbors
        rows = rows.replace_schema_metadata(None).take(pyarrow.array(range(len(rows)))).combine_chunks()
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        digest.update(memoryview(sink.getvalue()))
        for path in _files(rows):
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _files(rows: pyarrow.Table) -> Iterator[str]:
    # how `datasets` keeps what it decodes: its bytes, or where they are
    for column in rows.columns:
        if pyarrow.types.is_struct(column.type) and {f.name for f in column.type} == {"bytes", "path"}:
            for value in column.to_pylist():
                if value and value["bytes"] is None and value["path"] and os.path.isfile(value["path"]):
                    yield value["path"]
