import errno
import os
import shutil
from pathlib import Path

import pytest
from helpers.refusals import one_line
from safetensors import SafetensorError

from hf_finemix.errors import FineMixingError
from hf_finemix.io.output_folder import check_free_space, output_folder
from hf_finemix.repo_contents import REPORT_NAME


def refused(*args, body=lambda partial: None, **kwargs) -> str:
    with pytest.raises(FineMixingError) as error, output_folder(*args, **kwargs) as partial:
        body(partial)
    return one_line(error)


def model_folder(path, content="old"):
    path.mkdir()
    (path / REPORT_NAME).write_text(content)
    return path


def raising(error):
    def body(partial):
        (partial / "half").write_text("half")
        raise error

    return body


def test_the_folder_appears_whole(tmp_path):
    final = tmp_path / "deep" / "er" / "out"
    with output_folder(final) as partial:
        assert partial == tmp_path / "deep" / "er" / "out.partial"
        assert not final.exists()
        (partial / "a").write_text("a")
    assert (final / "a").read_text() == "a"
    assert os.listdir(final.parent) == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
    assert os.listdir(tmp_path / "out") == ["a"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x"), SystemExit(1)])
@pytest.mark.parametrize("out", ["out", "new/folders/out"])
def test_after_an_error_nothing_is_left(tmp_path, error, out):
    with pytest.raises(type(error)), output_folder(tmp_path / out) as partial:
        raising(error)(partial)
    assert os.listdir(tmp_path) == []


def test_after_an_error_folders_that_were_there_before_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="x"), output_folder(tmp_path / "mine" / "out") as partial:
        raising(ValueError("x"))(partial)
    assert os.listdir(tmp_path) == ["mine"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    for name in ("out.partial", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").touch()
    model_folder(tmp_path / "out")
    with output_folder(tmp_path / "out", overwrite=True) as partial:
        assert os.listdir(partial) == []
        (partial / "a").touch()
    # Only OUT.partial is ours: the other may be somebody's copy.
    assert sorted(os.listdir(tmp_path)) == ["out", "out.old"]
    assert os.listdir(tmp_path / "out") == ["a"]


def test_what_is_there_stays_unless_told(tmp_path):
    final = model_folder(tmp_path / "out")
    assert "not empty: give another one, or --overwrite" in refused(final)
    assert (final / REPORT_NAME).read_text() == "old"
    # With overwrite it is replaced as a whole, and only once the new content is there.
    assert "disk" in refused(final, overwrite=True, body=raising(OSError(errno.ENOSPC, "x")))
    assert (final / REPORT_NAME).read_text() == "old"
    with output_folder(final, overwrite=True) as partial:
        (partial / "new").touch()
        assert (final / REPORT_NAME).read_text() == "old"
    assert os.listdir(final) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_replaces_models_only(tmp_path, monkeypatch):
    """`--output-dir . --overwrite` must not remove somebody's project."""
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    for final in (Path("."), tmp_path, tmp_path / "x" / ".."):
        assert "holds no cleaned model to overwrite" in refused(final, overwrite=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    assert f"the output {file} is a file: give a folder" in refused(file, overwrite=True)
    assert f"{file / 'inner'} cannot be made (Not a directory): give another one" in refused(file / "inner")
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be made (Permission denied)" in refused(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk(tmp_path, error):
    assert refused(tmp_path / "out", body=raising(error)) == (
        f"the disk of {tmp_path / 'out'} is full: free some space, or give another output folder."
    )
    assert os.listdir(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (PermissionError(errno.EACCES, "no", "somewhere/else.csv"), SafetensorError("broken")):
        with pytest.raises(type(error)) as raised, output_folder(tmp_path / "out") as partial:
            raising(error)(partial)
        assert raised.value is error


def test_free_space(tmp_path):
    check_free_space(tmp_path, 1)
    with pytest.raises(FineMixingError, match="free some space, or give another output folder") as error:
        check_free_space(tmp_path, shutil.disk_usage(tmp_path).total + 1)
    assert f"the disk of {tmp_path.parent} has" in str(error.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EBUSY, "x")])
def test_the_old_model_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    final = model_folder(tmp_path / "out")
    rename = Path.rename

    def failing(self, target):
        if self.name == "out.partial":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)), output_folder(final, overwrite=True):
        pass
    assert (final / REPORT_NAME).read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_model_that_was_not_cleaned_is_not_overwritten(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    assert "holds no cleaned model" in refused(tmp_path / "bert", overwrite=True)


def test_a_mount_point_is_refused():
    assert "mount point" in refused(Path("/proc"), overwrite=True) or not Path("/proc").is_mount()
