"""`hf-finemix bench RECIPE.yaml`."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from ..bench.recipe import BenchRecipe
from .parsing import CommandParser, print_json, quiet_unless_terminal

__all__ = ["main"]


@dataclass
class BenchArguments:
    """Where the benchmark goes, and whether it is to be run."""

    output_dir: str = field(default="bench", metadata={"help": "Folder of suspects, runs, table and figure."})
    only_summary: bool = field(
        default=False, metadata={"help": "Run nothing: write table and figure of what there is."}
    )


def main(argv: list[str]) -> int:
    """Run a recipe, or go on with it, and print the table."""
    arguments, rest = CommandParser("bench", "recipe", (BenchArguments,)).parse(argv)
    recipe, folder = BenchRecipe.load(rest.recipe), Path(arguments.output_dir)
    quiet_unless_terminal()
    from ..bench.runner import benign_floors, known_floors, read_results, run_benchmark
    from ..bench.summary import write_summary

    with redirect_stdout(sys.stderr):
        if arguments.only_summary:
            results, floors = read_results(recipe, folder), known_floors(folder)
        else:
            results, floors = run_benchmark(recipe, folder), benign_floors(recipe, folder)
        table = write_summary(recipe, results, floors, folder)
    if rest.json:
        print_json(results)
    else:
        print(table, end="")
    missing = sum(1 for _ in recipe.runs()) - len(results)
    if missing:
        print(f"{missing} runs are still to be done, by another process or by running this again", file=sys.stderr)
    return 0
