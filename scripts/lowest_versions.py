"""
The lowest version of each library that pyproject.toml allows, as constraints for pip:

    python scripts/lowest_versions.py > lowest.txt && pip install -c lowest.txt -e ".[test]"
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    if found := re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?[>=]=([\d.]+).*", requirement):
        print(f"{found[1]}=={found[2]}")
