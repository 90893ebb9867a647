"""A data set by name: local files, a folder, or an id on the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import datasets

from hf_pacgen.command_line.inputs.sound_folder import is_sound_folder, read_sound_folder
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, Count, number, option
from hf_pacgen.errors import InputError, few, refusing

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
FORMATS |= {".txt": "text", ".text": "text", ".arrow": "arrow"}
# where the reader of `datasets` is not called as the format is, its name and options
READERS: dict[str, tuple[str, dict[str, Any]]] = {"tsv": ("csv", {"sep": "\t"})}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")
DESCRIBES = ("README.md", "metadata.csv", "metadata.jsonl", "metadata.parquet", "dataset_infos.json")
HEAD = 1000  # rows of a stream by which its columns and labels are judged


def _share(value: Any, name: str) -> float:
    if not number(value, name, minimum=0, strict=True) < 1:
        raise ValueError(f"{name} must be a share between 0 and 1; got {value!r}. The usual one is 0.15.")
    return float(value)


Share = Annotated[float, _share]


@dataclass(frozen=True, kw_only=True)
class DataArguments(Config):
    """Which data, and which of its columns."""

    _argument_group_name = "data"
    default_splits: ClassVar[tuple[str, ...]] = ("train",)  # the first of these that there is
    meant_data: ClassVar[str] = "the training data"
    meant_split: ClassVar[str] = "the one the model was trained on"

    dataset: list[str] = option(
        MISSING,  # it must be given
        "The training data: an id on the Hugging Face hub; one or more parquet, csv, tsv, json, jsonl or txt files, "
        "compressed or not; or a folder of them, of images or sounds, or one that save_to_disk() wrote.",
    )
    dataset_config: str | None = option(
        None, "Name of the data set's configuration on the hub, such as 'sst2' of glue."
    )
    split: str | None = option(
        None, "Split to score, such as 'train' or 'train[:1000]'. By default 'train', or the only one there is."
    )
    text_column: str | None = option(
        None,
        "Column with the text: also the words of tags, the question, the source, the prompt, or messages of a chat. "
        "By default a well-known name, or the only such column. translation.en is an entry of a column.",
    )
    text_pair_column: str | None = option(
        None, "Column with the second text of a pair, with the context of a question, or what begins each answer."
    )
    label_column: str | None = option(
        None,
        "Column with what is to be predicted: a class, tags, answers, a target, a completion, a mask, objects or a "
        "transcription. By default a well-known name, such as 'label'.",
    )
    choice_columns: list[str] | None = option(
        None, "Column with lists of answers to choose from, or one column for each answer."
    )
    image_column: str | None = option(None, "Column with the image. By default the only image column.")
    audio_column: str | None = option(None, "Column with the sound. By default the only such column.")
    template: str | None = option(
        None,
        "How the columns of a row make the text of a language model, such as '{question}\\n### {answer}'. The loss is "
        "on the last column, or from --label-column on; of seq2seq that is the target.",
    )
    assistant_only: bool = option(False, "In a chat, take the loss on what the assistant says alone.")
    completion_only: bool = option(
        True, "Of a prompt with its completion, take the loss on the completion alone, as TRL does."
    )
    eos: Literal["auto", "add", "none"] = option(
        "auto",
        "Whether a text ends with the end-of-sequence token: 'auto' adds it to completions, and to plain texts if the "
        "model comes from TRL's SFTTrainer, which does so.",
    )
    source_prefix: str | None = option(None, "Text before each source, such as 'summarize: ' for T5.")
    mask_share: Share = option(0.15, "Share of the tokens that a masked language model has to predict.")
    sample_by: Literal["line", "paragraph", "document"] = option("line", "What of a txt file is one text.")
    streaming: bool = option(
        False, "Read the data from its beginning, without a copy in the cache: for data larger than memory or disk."
    )
    max_length: Count | None = option(
        None,
        "Cut texts after this many tokens. By default as the SFTTrainer that made the model did, else the most the "
        "model can take, and at most 512.",
    )


def load_rows(args: DataArguments) -> tuple[datasets.Dataset, datasets.IterableDataset | None]:
    """The rows of one split, after :func:`check_files`; of a stream the first ones, and the stream."""
    names = args.dataset
    if args.streaming and "[" in (args.split or ""):
        raise InputError(
            f"--split {args.split!r} is a part of a split, and a stream is read from its beginning: give the whole "
            "split with --max-examples, or leave out --streaming."
        )
    if len(names) == 1 and Path(names[0]).is_dir():
        loaded = _load_folder(Path(names[0]), args)
    elif any(_is_file_name(name) for name in names) or len(names) > 1:
        loaded = _load_files(names, args)
    else:
        loaded = _load_from_hub(names[0], args)
    chosen, stream = _choose_split(loaded, args, few(names, 1)), None
    if isinstance(chosen, datasets.IterableDataset):
        failed = f"The data set {few(names, 1)!r} cannot be read as a stream"
        with quiet(), refusing(failed, "Repair it, or leave out --streaming."):
            stream = chosen if chosen.features is not None else chosen._resolve_features()
            chosen = datasets.Dataset.from_list(list(stream.take(HEAD)), features=stream.features)
    table: datasets.Dataset = chosen
    if len(table) == 0:  # of a slice such as train[:0], too
        empty = f"The data set {few(names, 1)!r} has no rows"
        raise InputError(f"{empty}: there is nothing to score. Give {args.meant_data}.")
    return table, stream


def check_complete(table: datasets.Dataset, column: str, what: str) -> None:
    """Raise if a column has empty cells."""
    # counted by arrow: the images of a column need not be decoded for it
    cells = table.with_format("arrow").select_columns([column])[:][column]
    if not cells.null_count:
        return
    first = cells.is_null().index(True).as_py()
    raise InputError(
        f"The column {column!r} has no value in {cells.null_count:,} of {len(table):,} rows (the first is row {first}, "
        f"counted from 0): expected {what} in each. Remove those rows."
    )


def _format_of(name: str) -> str | None:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()  # `datasets` unpacks train.csv.gz itself
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _is_file_name(name: str) -> bool:
    # an id on the hub has no such ending; what is written as a path is one, though nothing is there
    return Path(name).exists() or _format_of(name) is not None or name.startswith((".", "/", "~"))


def check_files(args: DataArguments) -> None:
    """Raise for a local file that is not there, before anything is downloaded."""
    alone = len(args.dataset) == 1
    for name in args.dataset:
        # several names are files: the hub's data sets are given one at a time
        is_local = "://" not in name and (_is_file_name(name) or not alone)
        if not is_local or (alone and Path(name).is_dir()):
            continue
        if not Path(name).is_file():
            is_folder = Path(name).is_dir()
            what = "is a folder; give its files one by one, or that folder alone" if is_folder else "does not exist"
            raise InputError(f"The data set file {name!r} {what}. Looked in {Path.cwd()}.")
        if Path(name).stat().st_size == 0:
            raise InputError(f"The data set file {name!r} is empty: expected rows with named columns.")


def _load_files(names: list[str], args: DataArguments) -> Any:
    split = args.split
    formats = {name: _format_of(name) for name in names}
    unknown = [name for name, kind in formats.items() if kind is None]
    if unknown:
        failed = f"Cannot tell the format of the data set file {unknown[0]!r} from its name"
        raise InputError(f"{failed}: expected one that ends in {', '.join(sorted(FORMATS))}. Rename or convert it.")
    if len(set(formats.values())) > 1:  # `datasets` would read all of them as the first
        raise InputError(f"The data set files are of different formats ({', '.join(names)}): expected one format.")
    kind = str(formats[names[0]])
    _check_readable(names, kind)
    reader, options = READERS.get(kind, (kind, {}))
    options = {**options, **_how(kind, args)}
    several = "" if len(names) == 1 else f" (or one of the {len(names) - 1} others, or their columns differ)"
    failed = f"The data set file {names[0]!r}{several} could not be read as {kind}"
    # each reader has its own family of errors
    with quiet(), refusing(failed, "Check the file, or convert it with datasets.Dataset.to_parquet()."):
        try:
            return datasets.load_dataset(reader, data_files=names, split=split or "train", **options)
        except ValueError as error:
            if "corresponds to no data" in str(error):  # a header without a row
                raise InputError(f"The data set file {names[0]!r} has no rows: there is nothing to score.") from error
            if split is not None and any(word in str(error).lower() for word in ("split", "instruction")):
                raise InputError(
                    f"--split {split!r} is not a split of the files given: what files hold is called 'train', "
                    f"of which a part is written as 'train[:1000]'. Leave --split out to score all of it."
                ) from error
            raise


def _check_readable(names: list[str], kind: str) -> None:
    """Raise for what the readers would take in silence, or refuse in words that do not help."""
    for name in names:
        if name.lower().endswith(".zst") and importlib.util.find_spec("zstandard") is None:
            raise InputError(
                f"The data set file {name!r} is compressed by zstd, which needs zstandard: pip install zstandard, or "
                "unpack it."
            )
        if kind == "csv" and Path(name).suffix.lower() == ".csv":
            with open(name, encoding="utf-8", errors="replace") as file:
                head = file.readline().strip()
            other = next((mark for mark in (";", "\t", "|") if mark in head and "," not in head), None)
            if other is not None:
                raise InputError(
                    f"The data set file {name!r} has columns set apart by {other!r} ({head[:60]!r}): expected commas. "
                    "Convert it, or rename it to .tsv where these are tabs."
                )


def _how(kind: str, args: DataArguments) -> dict[str, Any]:
    if args.sample_by != "line" and kind != "text":  # it would be ignored in silence
        raise InputError(
            f"--sample-by {args.sample_by} is for txt files, and {few(args.dataset, 1)} is none. Leave it out."
        )
    # no more than is asked for, since each reader has settings of its own
    return ({"sample_by": args.sample_by} if kind == "text" else {}) | ({"streaming": True} if args.streaming else {})


def _load_folder(folder: Path, args: DataArguments) -> Any:
    remedy = (
        "Expected one written by save_to_disk(), or with parquet, csv, json or txt files of the same columns, or with "
        "images or sounds in folders of their labels; or name the files themselves."
    )
    # load_dataset refuses what save_to_disk() wrote
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    with quiet(), refusing(f"The folder {str(folder)!r} could not be read as a data set", remedy):
        if saved:  # which is read where it lies, and never as a whole
            return _part(datasets.load_from_disk(str(folder)), args.split, str(folder))
        if is_sound_folder(folder):
            return _part(read_sound_folder(folder), args.split, str(folder))
        how = _how("text" if _kinds_in(folder) == {"text"} else "", args)
        return datasets.load_dataset(str(folder), split=args.split, **how)


def _kinds_in(folder: Path) -> set[str]:
    """The formats of the tables in a folder.

    Raises:
        InputError: there are several, of which `datasets` would read the most frequent one in silence.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_"))]
    found = {kind: path for path in reversed(files) if (kind := _format_of(path.name)) is not None}
    # what describes data, or its images: no tables of their own; a README may say which files are the data
    described = any(path.name in DESCRIBES for path in files)
    if len(found) > 1 and not described:
        several = ", ".join(sorted(str(path.relative_to(folder)) for path in found.values()))
        raise InputError(
            f"The folder {str(folder)!r} has data of different formats ({several}): expected one. Name the files that "
            "are meant, or put the others elsewhere."
        )
    return set(found)


def _load_from_hub(name: str, args: DataArguments) -> Any:
    failed = f"The data set {name!r} is no file or folder here, and could not be loaded from the Hugging Face hub"
    remedy = "Check the name, --dataset-config, --split and the connection."
    with quiet(data_bars=True), refusing(failed, remedy):  # a download takes long enough for bars
        return datasets.load_dataset(name, args.dataset_config, split=args.split, **_how("", args))


def _part(loaded: Any, split: str | None, shown: str) -> Any:
    """A split, or a part of one such as ``train[:1000]``, of data that no reader of `datasets` has cut already."""
    if split is None:
        return loaded
    tables = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    with refusing(
        f"--split {split!r} cannot be read", "Write a split, such as train, or a part of one: 'train[:1000]'."
    ):
        wanted = datasets.ReadInstruction.from_spec(split)
    names = [part.splitname for part in wanted._relative_instructions]
    if unknown := [name for name in names if name not in tables]:
        has = f"The data set {shown!r} has no split {unknown[0]!r}; it has {', '.join(tables)}."
        raise InputError(f"{has} Choose the one the model was trained on with --split.")
    parts = wanted.to_absolute({name: len(table) for name, table in tables.items()})
    rows = [
        tables[part.splitname].select(range(*slice(part.from_, part.to).indices(len(tables[part.splitname]))))
        for part in parts
    ]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def _choose_split(loaded: Any, args: DataArguments, shown: str) -> Any:
    if not isinstance(loaded, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return loaded
    names = list(loaded)
    usual = next((name for name in args.default_splits if name in names), args.default_splits[0])
    # a single split is taken by whatever name; of several, only the usual one is surely what is meant
    wanted = args.split or (usual if usual in names or len(names) != 1 else names[0])
    if wanted not in names:
        has = f"The data set {shown!r} has no split {wanted!r}; it has {', '.join(names)}."
        raise InputError(f"{has} Choose {args.meant_split} with --split.")
    return loaded[wanted]
