"""`hf-finemix bench RECIPE.yaml`."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from ..redteam.bench.recipe import BenchRecipe
from .parsing import CommandParser, print_json, quiet_unless_terminal


@dataclass
class BenchArguments:
    """Where the benchmark goes, and whether it is to be run."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of suspects, runs, table and figure. [default: bench/RECIPE]"}
    )
    only_summary: bool = field(
        default=False, metadata={"help": "Run nothing: write table and figure of what there is."}
    )


def main(argv: list[str]) -> int:
    """Run a recipe, or go on with it, and print the table."""
    arguments, rest = CommandParser("bench", "recipe", (BenchArguments,)).parse(argv)
    recipe = BenchRecipe.load(rest.recipe)
    folder = Path(arguments.output_dir or Path("bench") / Path(rest.recipe).stem)
    quiet_unless_terminal()
    from ..redteam.bench.floors import benign_floors, known_floors
    from ..redteam.bench.runner import read_results, run_benchmark
    from ..redteam.bench.summary import write_summary

    with redirect_stdout(sys.stderr):
        failures = {} if arguments.only_summary else run_benchmark(recipe, folder)
        results = read_results(recipe, folder)
        floors = known_floors(folder) if arguments.only_summary or failures else benign_floors(recipe, folder)
        table = write_summary(recipe, results, floors, folder)
    if rest.json:
        print_json(results)
    else:
        print(table, end="")
    missing = sum(1 for _ in recipe.runs()) - len(results) - len(failures)
    if missing:
        print(f"{missing} runs are still to be done, by another process or by running this again", file=sys.stderr)
    for key, reason in failures.items():
        print(f"{key} failed: {reason}", file=sys.stderr)
    return 2 if failures else 0
