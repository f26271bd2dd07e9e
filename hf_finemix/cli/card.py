"""`hf-finemix card FOLDER`."""

from dataclasses import dataclass, field
from pathlib import Path

from ..io.output_folder import write_text
from ..report.card import card_in_folder
from ..report.report import CleaningReport
from .parsing import CommandParser, log_plainly


@dataclass
class CardArguments:
    """What to do with the card."""

    print_only: bool = field(default=False, metadata={"help": "Print it and leave README.md as it is."})


def main(argv: list[str]) -> int:
    """Write the card of a cleaned folder again from its report; whatever else is in README.md stays."""
    arguments, rest = CommandParser("card", "folder", CardArguments, with_json=False).parse(argv)
    log_plainly()
    folder = Path(rest.folder)
    card, path = card_in_folder(folder, CleaningReport.load(folder)), folder / "README.md"
    if arguments.print_only:
        print(card, end="")
    else:
        write_text(path, card)
        print(f"written to {path}")
    return 0
