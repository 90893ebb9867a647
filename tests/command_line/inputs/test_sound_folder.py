"""Folders of sounds become tables without a library that decodes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_pacgen.command_line.inputs.sound_folder import is_sound_folder, read_sound_folder
from hf_pacgen.errors import InputError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_labels_are_the_names_of_folders(tmp_path: Path) -> None:
    folder = make(tmp_path, "train/yes/a.wav", "train/no/b.flac", "test/no/c.wav", "test/yes/d.wav")
    assert is_sound_folder(folder)
    found = read_sound_folder(folder)
    assert set(found) == {"train", "test"} and found["train"].features["label"].names == ["no", "yes"]
    assert [Path(path).name for path in found["train"]["audio"]] == ["b.flac", "a.wav"]
    assert found["train"]["label"] == [0, 1]


def test_sounds_without_folders_have_no_label(tmp_path: Path) -> None:
    assert read_sound_folder(make(tmp_path, "a.wav", "b.mp3"))["train"].column_names == ["audio"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata(kind: str, tmp_path: Path) -> None:
    folder = make(tmp_path, "a.wav", "b.wav")
    text = {
        "csv": "file_name,text\nb.wav,hello\na.wav,you\n",
        "jsonl": '{"file_name": "b.wav", "text": "hello"}\n{"file_name": "a.wav", "text": "you"}\n',
    }
    (folder / f"metadata.{kind}").write_text(text[kind])
    assert is_sound_folder(folder)
    found = read_sound_folder(folder)["train"]
    assert found["audio"] == [str(folder / "b.wav"), str(folder / "a.wav")] and found["text"] == ["hello", "you"]
    (folder / f"metadata.{kind}").write_text("name\na.wav\n" if kind == "csv" else '{"name": "a.wav"}\n')
    with pytest.raises(InputError, match="has name: expected file_name in each row"):
        read_sound_folder(folder)
    (folder / f"metadata.{kind}").write_text("")
    with pytest.raises(InputError, match="has no row: expected file_name"):
        read_sound_folder(folder)


def test_other_folders(tmp_path: Path) -> None:
    assert not is_sound_folder(make(tmp_path / "a", "a.wav", "train.csv"))
    assert not is_sound_folder(make(tmp_path / "b", "train.csv"))
