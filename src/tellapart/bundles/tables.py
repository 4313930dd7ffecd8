"""Predicts any number of files into a table that survives a kill. Knows nothing about the command line.

Rows are written in the order of the images to ``OUT.part`` and counted when the work goes on: a row is there once or
not at all. At the end the part becomes the table.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from tellapart.errors import InputError
from tellapart.files import write_text
from tellapart.records import Prediction, Progress, no_progress
from tellapart.tables import from_cell, to_cell

FORMATS = ("csv", "jsonl", "parquet")

_FLUSHED = 256
"""Rows between two flushes to the disk: so much work is done again after a kill."""
_ROW_GROUP = 20_000  # bounds the rows in memory while Parquet is written


@dataclass(frozen=True)
class Written:
    """What became of the images.

    Attributes:
        path: the table.
        num_images: rows in it.
        num_unreadable: of them, with an error instead of a label.
        num_abstained: of them, without a clear answer.
        num_unknown: of them, none of the known classes.
        num_warned: of them, worse than the photos that the accuracy was measured on.
        num_resumed: rows that an earlier, killed try had written.
    """

    path: Path
    num_images: int
    num_unreadable: int
    num_abstained: int
    num_unknown: int
    num_warned: int
    num_resumed: int


class Streams(Protocol):
    """A run or a bundle, opened for prediction."""

    @property
    def identity(self) -> str:
        """Of the model: rows of two models are no table."""
        ...

    def stream(self, images: Sequence[Path], *, top_k: int, with_quality: bool) -> Iterator[Prediction]:
        """Yield a prediction for each image, in their order."""
        ...


def predict_files(
    classifier: Streams,
    images: Sequence[Path],
    out: Path,
    *,
    top_k: int = 3,
    with_quality: bool = True,
    progress: Progress = no_progress,
) -> Written:
    """Name images, one row each, into ``.csv``, ``.jsonl`` or ``.parquet``.

    Called again after a kill with the same model and images it goes on behind the last whole row.

    Args:
        classifier: the run or the bundle.
        images: files, in an order that stays the same.
        out: the table; an old one is replaced at the end.
        top_k: how many classes to list.
        with_quality: also say which photos are worse than those that the accuracy was measured on.
        progress: called with ("predicting", done, total).

    Raises:
        InputError: another format, or ``OUT.part`` belongs to another model or other images.
    """
    kind = out.suffix[1:].lower()
    if kind not in FORMATS:
        raise InputError(f"{out} ends in {out.suffix!r}. Expected {', '.join('.' + name for name in FORMATS)}.")
    if kind == "parquet":
        _need_pyarrow()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    line = CsvLines(top_k) if kind == "csv" else JsonLines()
    counts, done = _resumed(part, line, images)
    # Note the model before the first row: a kill may leave a note without rows, but never rows of an unknown model.
    _same_model(part, classifier.identity, done)
    resumed = done
    with open(part, "ab") as stream:
        if stream.tell() == 0:
            stream.write(line.header().encode())
        for prediction in classifier.stream(images[done:], top_k=top_k, with_quality=with_quality):
            # File names need not be UTF-8: surrogateescape writes their original bytes.
            stream.write(line.row(prediction).encode("utf-8", "surrogateescape"))
            _count(
                counts,
                prediction.label is None,
                prediction.abstains,
                prediction.unknown,
                bool(prediction.quality_warnings),
            )
            done += 1
            if done % _FLUSHED == 0 or done == len(images):
                _to_disk(stream)
                progress("predicting", done, len(images))
    # Parquet cannot be appended to after a kill, so its rows were collected as JSON Lines.
    if kind == "parquet":
        _to_parquet(part, out)
    else:
        part.replace(out)
    _model_of(part).unlink(missing_ok=True)  # last: rows without this note could not be resumed
    # In the order of `_count`.
    return Written(out, done, counts[0], counts[1], counts[2], counts[3], resumed)


def _one_line(text: str) -> str:
    """Return a name without line ends: exactly one line per image, since resuming counts lines."""
    return json.dumps(text, ensure_ascii=False)[1:-1] if "\n" in text or "\r" in text else text


class CsvLines:
    """Rows as CSV; what a line cannot hold is escaped as JSON does."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k

    def header(self) -> str:
        """Return the names of the columns."""
        runners_up = [f"{name}_{rank}" for rank in range(2, self.top_k + 1) for name in ("label", "probability")]
        columns = ["path", "label", "probability", "abstains", "unknown", "quality_warnings", "prediction_set", "error"]
        return _csv_line([*columns, *runners_up])

    def row(self, prediction: Prediction) -> str:
        """Return a prediction as a line."""
        rest: list[Any] = [value for label, share in prediction.top[1:] for value in (_one_line(label), share)]
        rest += [""] * (2 * (self.top_k - 1) - len(rest))
        probability = "" if prediction.label is None else f"{prediction.probability:.6f}"
        flags = ["", "", "", ""]
        if prediction.label is not None:
            flags = [str(flag).lower() for flag in (prediction.abstains, prediction.unknown)]
            flags += [" ".join(prediction.quality_warnings), json.dumps(prediction.prediction_set)]
        rest = [f"{value:.6f}" if isinstance(value, float) else value for value in rest]
        return _csv_line(
            [
                self.path(prediction.path),
                _one_line(prediction.label or ""),
                probability,
                *flags,
                prediction.error.replace("\n", " "),
                *rest,
            ]
        )

    def path(self, path: str) -> str:
        """Return a path as it stands in a row."""
        return _one_line(path)

    def facts(self, line: str) -> tuple[str, bool, bool, bool, bool]:
        """Return (path as it stands there, unreadable, abstains, unknown, warned)."""
        # Positions as in `header`. `from_cell` removes the apostrophe that keeps a spreadsheet from reading a name as a
        # formula.
        cells = next(csv.reader([line]))
        return from_cell(cells[0]), bool(cells[7]), cells[3] == "true", cells[4] == "true", bool(cells[5])


class JsonLines:
    """Rows as JSON objects."""

    def header(self) -> str:
        """Return nothing: every line names its fields."""
        return ""

    def row(self, prediction: Prediction) -> str:
        """Return a prediction as a line."""
        known = prediction.label is not None
        values = {
            "path": prediction.path,
            "label": prediction.label,
            "probability": round(prediction.probability, 6) if known else None,
            "abstains": prediction.abstains if known else None,
            "unknown": prediction.unknown if known else None,
            "quality_warnings": list(prediction.quality_warnings) if known else None,
            "prediction_set": list(prediction.prediction_set) if known else None,
            "error": prediction.error,
            "top": [{"label": label, "probability": round(probability, 6)} for label, probability in prediction.top],
        }
        return json.dumps(values) + "\n"

    def path(self, path: str) -> str:
        """Return a path as it is: JSON escapes what a line cannot hold."""
        return path

    def facts(self, line: str) -> tuple[str, bool, bool, bool, bool]:
        """Return (path, unreadable, abstains, unknown, warned)."""
        values = json.loads(line)
        unknown = bool(values.get("unknown"))  # not in rows of earlier versions
        warned = bool(values["quality_warnings"])
        return values["path"], values["label"] is None, bool(values["abstains"]), unknown, warned


def _resumed(part: Path, line: CsvLines | JsonLines, images: Sequence[Path]) -> tuple[list[int], int]:
    """Return the counts and the number of whole rows that an earlier try left; cut off what is not whole.

    Raises:
        InputError: the rows are not those of the first images.
    """
    counts, done, whole_bytes = [0, 0, 0, 0], 0, 0
    if not part.exists():
        return counts, 0
    with open(part, "rb") as stream:
        for number, raw in enumerate(stream):
            text = raw.decode("utf-8", "surrogateescape")
            is_header = number == 0 and line.header() != ""
            if not text.endswith("\n"):  # half a row: the kill came in the middle of a write
                break
            if is_header:
                if text != line.header():
                    raise InputError(f"{part} was begun with other columns. Remove it to begin anew.")
                whole_bytes += len(raw)
                continue
            try:
                path, *flags = line.facts(text.rstrip("\r\n"))
            except (ValueError, IndexError, KeyError, StopIteration):
                break  # after a power cut anything may follow the last flush
            # The rows must be those of the first images, in order, because new rows are simply appended.
            # Compared as written, not turned back: "\n" in a row may be a line break, or a backslash before an n.
            if done >= len(images) or path != line.path(os.fspath(images[done])):
                raise InputError(
                    f"{part} was begun with other images: row {done + 1} is {path}. Remove it to begin anew."
                )
            _count(counts, *flags)
            done, whole_bytes = done + 1, whole_bytes + len(raw)
    # Cut off half a row: appending to it would spoil two rows.
    os.truncate(part, whole_bytes)
    return counts, done


def _model_of(part: Path) -> Path:
    return part.with_name(part.name + ".model")


def _same_model(part: Path, identity: str, done: int) -> None:
    """Note whose rows a part holds, before the first is written.

    Raises:
        InputError: they are another model's.
    """
    note = _model_of(part)
    noted_identity = note.read_text("utf-8").strip() if note.exists() else ""
    if done and noted_identity != identity:
        raise InputError(
            f"{part} was begun with another model ({noted_identity or 'of an earlier version'}; this is {identity}). "
            "Remove it to begin anew."
        )
    write_text(note, identity + "\n")


def _count(counts: list[int], *flags: bool) -> None:
    """Add the flags (unreadable, abstains, unknown, warned) of a row to their counts."""
    for position, flag in enumerate(flags):
        counts[position] += bool(flag)


def _csv_line(cells: list) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([to_cell(str(cell)) for cell in cells])
    return stream.getvalue()


def _to_disk(stream: IO[bytes]) -> None:
    # Progress is reported after this: rows that were reported must survive a power cut.
    stream.flush()
    os.fsync(stream.fileno())


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError("Parquet needs the package pyarrow: pip install 'tellapart[parquet]'.") from None


def _to_parquet(part: Path, out: Path) -> None:
    """Turn the JSON Lines into Parquet, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tellapart.files import atomic_file

    label_and_probability = pa.struct([("label", pa.string()), ("probability", pa.float32())])
    schema = pa.schema([
        ("path", pa.string()), ("label", pa.string()), ("probability", pa.float32()), ("abstains", pa.bool_()),
        ("unknown", pa.bool_()), ("quality_warnings", pa.list_(pa.string())),
        ("prediction_set", pa.list_(pa.string())), ("error", pa.string()), ("top", pa.list_(label_and_probability)),
    ])  # fmt: skip

    def to_table(rows: list[dict]) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=schema)

    read: Callable[[str], dict] = json.loads
    with atomic_file(out) as target, pq.ParquetWriter(target, schema) as writer, open(part, encoding="utf-8") as lines:
        rows = []
        for text in lines:
            rows.append({k: _text(v) for k, v in read(text).items()})
            if len(rows) == _ROW_GROUP:
                writer.write_table(to_table(rows))
                rows = []
        writer.write_table(to_table(rows))
    part.unlink()


def _text(value: Any) -> Any:
    """Return a value that Parquet can hold: names that are no UTF-8 get their odd bytes replaced."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
