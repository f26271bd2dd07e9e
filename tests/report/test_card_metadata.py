import pytest
import yaml
from helpers.reports import make_report, split_card

from hf_finemix.report.card_metadata import carried_over


def test_hostile_metadata_stays_a_value(tmp_path):
    card = {"license": "mit\nevil: 1", "language": ["en", "x" * 200, 5], "pipeline_tag": "---", "tags": {"a": 1}}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Suspect\n")
    metadata, _ = split_card(make_report(card_metadata=carried_over(tmp_path)))
    assert "evil" not in metadata
    assert "license" not in metadata
    assert metadata["language"] == ["en"]
    assert "pipeline_tag" not in metadata
    assert metadata["tags"] == ["hf_finemix", "backdoor-removal"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "# no metadata",
        "---\n[1, 2]\n---\n",
        "---\n: {\n---\n",
        "---\n" + "[" * 50_000 + "\n---\n",
        "---\ndate: 2024-99-99\n---\n",
        "---\n!!python/object/apply:os.getcwd []\n---\n",
    ],
)
def test_a_suspect_without_usable_metadata(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert carried_over(tmp_path) == {}


def test_metadata_of_a_suspect(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags: [a, b]\nmodel-index: []\n---\n")
    assert carried_over(tmp_path) == {"license": "mit", "language": ["en"], "tags": ["a", "b"]}
