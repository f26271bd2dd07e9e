"""
The tables of docs/hub.md, from a run of the tests:

    pytest --junitxml hub.xml tests/jobs/test_hostile_repos.py tests/hub/test_pulling.py \
        tests/report/test_publish.py
    python scripts/hub_tables.py hub.xml
"""

import re
import sys
from collections import defaultdict
from xml.etree import ElementTree


def main(path: str) -> None:
    """Print hostile repos with what became of each, and faults with what was said of each."""
    hostile, faults = [], defaultdict(list)
    for case in ElementTree.parse(path).iter("testcase"):
        properties = {item.get("name"): item.get("value") for item in case.iter("property")}
        parameters = re.search(r"\[(.+)\]", case.get("name"))
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        if "what" in properties:
            hostile.append((parameters[1], properties["what"], "FAILED" if failed else properties["outcome"]))
        elif "message" in properties:
            doing = "publishing" if "publish" in case.get("classname") else "pulling"
            faults[doing, plain(properties["message"])].append("FAILED" if failed else parameters[1])
    cleaned = sum("nothing got through" in row[2] for row in hostile)
    print(f"{len(hostile)} repos: {cleaned} cleaned with nothing got through, {len(hostile) - cleaned} refused.\n")
    print("| repo | what it tries | outcome |\n|---|---|---|")
    for row in hostile:
        print("| " + " | ".join(plain(cell)[:240] for cell in row) + " |")
    print(f"\n{sum(map(len, faults.values()))} faults.\n\n| while | fault (step-what) | what is said |\n|---|---|---|")
    for (doing, message), cases in faults.items():
        print(f"| {doing} | {', '.join(cases)} | {message} |")


def plain(text: str) -> str:
    """The text without what would be live in a table, and without folders of this machine and commits of this run."""
    text = re.sub(r"/\S*/(?:test_[^/\s]+|snapshots/[0-9a-f]{40})/", "…/", text)
    text = re.sub(r"\b[0-9a-f]{40}\b", "(commit)", text)
    return re.sub(r"[|<>`*_\[\]]", lambda sign: f"\\{sign[0]}" if sign[0] in "*_[]" else "·", text)


if __name__ == "__main__":
    main(*sys.argv[1:])
