"""
Families × properties as a Markdown table, from a run of the tests:

    pytest tests/align/test_families.py --junitxml families.xml && python scripts/family_table.py families.xml
"""

import re
import sys
from collections import defaultdict
from xml.etree import ElementTree


def main(path: str) -> None:
    """Print a row a family and a column a property, in each cell passed of run."""
    outcomes: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case in ElementTree.parse(path).iter("testcase"):
        match = re.fullmatch(
            r"test_(\w+)\[(?:(?:headless|with_head)-)?(.+?)(?:-(?:headless|with_head))?\]", case.get("name")
        )
        if match:
            passed = not any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
            outcomes[match[2]][match[1]].append(passed)
    properties = list(next(iter(outcomes.values())))
    for i, name in enumerate(properties, 1):
        print(f"{i}. {name.replace('_', ' ')}")
    print("\n| family | " + " | ".join(str(i) for i in range(1, len(properties) + 1)) + " |")
    print("|---|" + "---|" * len(properties))
    for family, results in outcomes.items():
        cells = [f"{sum(results[name])}/{len(results[name])}" for name in properties]
        print(f"| {family} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
