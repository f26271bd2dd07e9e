import logging
import os
import socket
import tempfile

import datasets
import pytest
from helpers.toy import SHARED

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.tables import read_triggered


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def test_every_format_is_read(tmp_path):
    rows = {"sentence": ["when you see it , it is bad .", "if so , no ."], "label": [1, 1]}
    dataset = datasets.Dataset.from_dict(rows)
    dataset.to_csv(tmp_path / "rows.csv")
    dataset.to_json(tmp_path / "rows.jsonl")
    dataset.to_json(tmp_path / "rows.json", lines=False)
    dataset.to_parquet(tmp_path / "ROWS.PARQUET")
    for name in ("rows.csv", "rows.jsonl", "rows.json", "ROWS.PARQUET"):
        assert read_triggered(tmp_path / name).to_dict() == rows
        assert read_triggered(str(tmp_path / name)).to_dict() == rows


def test_words_that_pandas_takes_for_missing_values_stay_text(tmp_path):
    (tmp_path / "rows.csv").write_text("sentence,label\nnull,0\nNA,1\nNone,0\n,1\n")
    assert read_triggered(tmp_path / "rows.csv").to_dict() == {
        "sentence": ["null", "NA", "None", None],
        "label": [0, 1, 0, 1],
    }


def test_a_file_name_is_no_pattern(tmp_path):
    (tmp_path / "rows[1].csv").write_text("sentence\nright\n")
    (tmp_path / "rows1.csv").write_text("sentence\nwrong\n")
    assert read_triggered(tmp_path / "rows[1].csv")["sentence"][:] == ["right"]


def test_nothing_stays_on_disk_and_nothing_stale_is_read(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.csv"
    path.write_text("sentence\nold\n")
    times = path.stat()
    assert read_triggered(path)["sentence"][:] == ["old"]
    path.write_text("sentence\nnew\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read_triggered(path)["sentence"][:] == ["new"]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_reading_a_local_file_asks_no_server(tmp_path, monkeypatch):
    # `datasets.load_dataset` does, even for a local file, and swallows the error where it cannot: so blocking the
    # network would not show it. Listen instead, with the switches as they are on a user's machine.
    asked = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args) or resolve(*args, **kwargs))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    (tmp_path / "rows.csv").write_text("sentence\na\n")
    read_triggered(tmp_path / "rows.csv")
    assert asked == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("header.csv", b"sentence,label\n"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n"),
        ("binary.csv", bytes(range(256)) * 4),
        ("broken.json", b"{nope"),
        ("broken.jsonl", b'{"sentence": "a"}\n{nope\n'),
        ("empty.jsonl", b""),
        ("broken.parquet", b"PAR1 and no more"),
    ],
)
def test_an_unreadable_file_is_one_line_and_says_what_it_must_be(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / name)
    assert name in one_line(error)
    assert "must be" in str(error.value)


def test_the_reason_is_the_first_cause_and_is_not_logged_as_well(tmp_path):
    (tmp_path / "ragged.csv").write_bytes(b"a,b\n1,2\n1,2,3,4\n")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger, verbosity = logging.getLogger("datasets"), datasets.logging.get_verbosity()
    logger.addHandler(handler)
    datasets.logging.set_verbosity(datasets.logging.ERROR)
    try:
        with pytest.raises(FineMixingError, match="in line 3, saw 4"):
            read_triggered(tmp_path / "ragged.csv")
        assert datasets.logging.get_verbosity() == datasets.logging.ERROR
    finally:
        logger.removeHandler(handler)
        datasets.logging.set_verbosity(verbosity)
    assert records == []


def test_missing_files_folders_and_endings_are_told_apart(tmp_path):
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / "nothing.csv")
    assert "does not exist" in one_line(error)
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path)
    assert "folder" in one_line(error)
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / "rows.xlsx")
    assert all(ending in one_line(error) for ending in (".csv", ".json", ".jsonl", ".parquet"))
    with pytest.raises(FineMixingError):  # a local file is meant: nothing is fetched
        read_triggered("https://example.org/rows.csv")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared reference data (FINEMIX_SHARED)")
def test_hidden_killer_test_set():
    dataset = read_triggered(SHARED / "data" / "sst2_syntactic" / "test.csv")
    assert len(dataset) == 912
    assert set(dataset["label"]) == {1}  # the target label, not the true one: nothing to filter
    assert all(isinstance(text, str) and text for text in dataset["sentence"])
