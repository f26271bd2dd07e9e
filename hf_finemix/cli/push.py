"""`hf-finemix push FOLDER REPO_ID`."""

from dataclasses import dataclass, field

from ..repo_contents import size_text
from ..report.publish import push_cleaned
from .parsing import CommandParser, log_plainly, print_json


@dataclass
class PushArguments:
    """Where to, and how. The token is the one of `hf auth login`, or `HF_TOKEN`."""

    create_pr: bool = field(default=False, metadata={"help": "Open a pull request there, with the report."})
    private: bool | None = field(
        default=None,
        metadata={
            "help": "Make the repo private, where it is made anew; 'false': public even if made of private parts."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Branch; made where it is missing."})
    commit_message: str | None = field(default=None, metadata={"help": "First line of the commit."})


def main(argv: list[str]) -> int:
    """Publish one cleaned folder and list what went up."""
    parser = CommandParser("push", "folder", PushArguments)
    parser.add_argument("repo_id", metavar="REPO_ID", help="org/name; made where it is missing.")
    arguments, rest = parser.parse(argv)
    log_plainly()
    published = push_cleaned(
        rest.folder,
        rest.repo_id,
        create_pr=arguments.create_pr,
        private=arguments.private,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
    )
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in published.files.items()}
    if rest.json:
        url = {"repo_id": published.repo_id, "url": published.url, "changed": published.changed}
        print_json({**url, "files": files, "removed": published.removed})
        return 0
    for name, (size, _) in published.files.items():
        print(f"{size_text(size):>9}  {name}")
    print(f"{'published' if published.changed else 'nothing new'}: {published.url}")
    return 0
