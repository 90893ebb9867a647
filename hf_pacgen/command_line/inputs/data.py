"""A data set by name: local files, a folder, or an id on the hub."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, Count, option
from hf_pacgen.errors import InputError, few, refusing

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
# where the reader of `datasets` is not called as the format is, its name and options
READERS: dict[str, tuple[str, dict[str, Any]]] = {"tsv": ("csv", {"sep": "\t"})}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")


@dataclass(frozen=True, kw_only=True)
class DataArguments(Config):
    """Which data, and which of its columns."""

    _argument_group_name = "data"

    dataset: list[str] = option(
        MISSING,  # it must be given
        "The training data: an id on the Hugging Face hub, one or more parquet, csv, json or jsonl files, "
        "or a folder of them.",
    )
    dataset_config: str | None = option(
        None, "Name of the data set's configuration on the hub, such as 'sst2' of glue."
    )
    split: str | None = option(
        None, "Split to score, such as 'train' or 'train[:1000]'. By default 'train', or the only one there is."
    )
    text_column: str | None = option(
        None, "Column with the text. By default a well-known name, or the only text column."
    )
    text_pair_column: str | None = option(None, "Column with the second text of a pair, for sequence classification.")
    label_column: str | None = option(None, "Column with the label. By default a well-known name, such as 'label'.")
    image_column: str | None = option(None, "Column with the image. By default the only image column.")
    max_length: Count | None = option(
        None, "Cut texts after this many tokens. By default the most the model can take, and at most 512."
    )


def load_table(args: DataArguments) -> datasets.Dataset:
    """The rows of one split, after :func:`check_files`."""
    names = args.dataset
    if len(names) == 1 and Path(names[0]).is_dir():
        loaded = _load_folder(Path(names[0]), args.split)
    elif any(_is_file_name(name) for name in names) or len(names) > 1:
        loaded = _load_files(names, args.split)
    else:
        loaded = _load_from_hub(names[0], args)
    table: datasets.Dataset = _choose_split(loaded, args.split, few(names, 1))
    if len(table) == 0:  # of a slice such as train[:0], too
        empty = f"The data set {few(names, 1)!r} has no rows"
        raise InputError(f"{empty}: there is nothing to score. Give the training data.")
    return table


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


def _load_files(names: list[str], split: str | None) -> Any:
    formats = {name: _format_of(name) for name in names}
    unknown = [name for name, kind in formats.items() if kind is None]
    if unknown:
        failed = f"Cannot tell the format of the data set file {unknown[0]!r} from its name"
        raise InputError(f"{failed}: expected one that ends in {', '.join(sorted(FORMATS))}. Rename or convert it.")
    if len(set(formats.values())) > 1:  # `datasets` would read all of them as the first
        raise InputError(f"The data set files are of different formats ({', '.join(names)}): expected one format.")
    kind = str(formats[names[0]])
    reader, options = READERS.get(kind, (kind, {}))
    several = "" if len(names) == 1 else f" (or one of the {len(names) - 1} others, or their columns differ)"
    failed = f"The data set file {names[0]!r}{several} could not be read as {kind}"
    # each reader has its own family of errors
    with quiet(), refusing(failed, "Check the file, or convert it with datasets.Dataset.to_parquet()."):
        try:
            return datasets.load_dataset(reader, data_files=names, split=split or "train", **options)
        except ValueError as error:
            if "corresponds to no data" in str(error):  # a header without a row
                raise InputError(f"The data set file {names[0]!r} has no rows: there is nothing to score.") from error
            if split is not None and "split" in str(error).lower():
                raise InputError(
                    f"--split {split!r} is not a split of the files given: what files hold is called 'train', "
                    f"of which a part is written as 'train[:1000]'. Leave --split out to score all of it."
                ) from error
            raise


def _load_folder(folder: Path, split: str | None) -> Any:
    remedy = (
        "Expected one written by save_to_disk(), or with parquet, csv or json files of the same columns; or name the "
        "files themselves."
    )
    # load_dataset refuses what save_to_disk() wrote
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    with quiet(), refusing(f"The folder {str(folder)!r} could not be read as a data set", remedy):
        return datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder), split=split)


def _load_from_hub(name: str, args: DataArguments) -> Any:
    failed = f"The data set {name!r} is no file or folder here, and could not be loaded from the Hugging Face hub"
    remedy = "Check the name, --dataset-config, --split and the connection."
    with quiet(data_bars=True), refusing(failed, remedy):  # a download takes long enough for bars
        return datasets.load_dataset(name, args.dataset_config, split=args.split)


def _choose_split(loaded: Any, split: str | None, shown: str) -> Any:
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    names = list(loaded)
    # a single split is taken by whatever name; of several, only "train" is surely what the model has seen
    wanted = split or ("train" if "train" in names or len(names) != 1 else names[0])
    if wanted not in names:
        has = f"The data set {shown!r} has no split {wanted!r}; it has {', '.join(names)}."
        raise InputError(f"{has} Choose the one the model was trained on with --split.")
    return loaded[wanted]
