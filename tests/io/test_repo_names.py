import pytest

from hf_finemix.errors import FineMixingError
from hf_finemix.io.repo_names import is_repo_id, split_revision


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/name-v1.5_a", "Org.x/N", "a" * 96])
def test_names_that_the_hub_takes(name):
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "name",
    ["", "a..b", "org/x.git", "org/name--x", "a" * 97, "org/" + "a" * 120, "o" * 200 + "/name", "a/b/c", "-a", "a."],
)
def test_names_that_it_refuses(name):
    assert not is_repo_id(name)


@pytest.mark.parametrize("name", ["../x", "/x", "a/", "~/x", "a b", "a\n", "org/name\n", "a\x00"])
def test_what_is_no_name_at_all(name):
    assert not is_repo_id(name)


def test_a_revision_behind_a_name(tmp_path, monkeypatch):
    assert split_revision("org/name@v1") == ("org/name", "v1")
    assert split_revision("org/name", "v2") == ("org/name", "v2")
    assert split_revision("a..b@v1") == ("a..b@v1", None)  # no name, so it is what it is
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name@v1").mkdir()
    assert split_revision("name@v1") == ("name@v1", None)
    with pytest.raises(FineMixingError, match="are two: give one of them"):
        split_revision("org/name@v1", "v2")
