"""What the pages name is there, and every public name is on a page."""

import re

import pytest
from helpers.toy import ROOT

import hf_finemix

PAGES = [path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]) if path.stem != "CHANGELOG"]
SCRIPTS = [ROOT / "Makefile", *sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")])]
PATH = re.compile(r"(?<![\w/.-])(?:tests|benchmarks|scripts|examples|docs|hf_finemix)/[\w./-]*\w")


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page):
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert not {path for path in named if not (ROOT / path).exists()}


def test_every_public_name_is_on_a_page():
    words = set(re.findall(r"\w+", "".join(page.read_text(encoding="utf-8") for page in PAGES)))
    assert not set(hf_finemix.__all__) - {"__version__"} - words
