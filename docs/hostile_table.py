"""
Hostile repos and what became of each, as a Markdown table, from a run of the tests:

    pytest tests/test_hostile_repos.py --junitxml hostile.xml && python docs/hostile_table.py hostile.xml
"""

import re
import sys
from xml.etree import ElementTree


def main(path: str) -> None:
    """Print a row a repo: what it tries, and the outcome or the error's line."""
    rows = []
    for case in ElementTree.parse(path).iter("testcase"):
        properties = {item.get("name"): item.get("value") for item in case.iter("property")}
        name = re.search(r"\[(.+)\]", case.get("name"))
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        if name and "what" in properties:
            outcome = "FAILED" if failed else properties["outcome"]
            rows.append((name[1], properties["what"], re.sub(r"/\S*/(test_\w+/)?", "…/", outcome)[:220]))
    print(f"{len(rows)} repos, {sum('nothing got through' in row[2] for row in rows)} of them cleaned.\n")
    print("| repo | what it tries | outcome |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(re.sub(r"[|<>`]", "·", cell) for cell in row) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
