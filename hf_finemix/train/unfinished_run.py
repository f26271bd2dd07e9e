"""Going on with an interrupted cleaning: what it left in OUT.partial, and whether it was the same one."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FineMixingError
from ..io.output_folder import write_text
from ..io.safe_json import read_json
from .ratio_search import Outcome

CHECKPOINTS, RUN_NAME, TRIALS_NAME = "checkpoints", "run.json", "trials.json"


class UnfinishedRun:
    """
    The settings, the finished trials of ρ and the checkpoints that a run keeps in OUT.partial until it is finished.

    Settings are all that decides the result, as JSON values; other ones than an earlier run's there are refused.
    `observer`, an [`AttackObserver`] or none, measures at the end of each training for the report: a trial is kept
    with what it added to `observer.measured`, and adds that when it is not made again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.checkpoints, self._folder, self.observer = folder / CHECKPOINTS, folder, None
        self._settings = json.loads(json.dumps(settings, default=str))
        self._trials: dict[str, Any] = {}
        earlier = read_json(folder / RUN_NAME) if (folder / RUN_NAME).is_file() else self._settings
        for name in sorted(earlier.keys() | self._settings.keys()):
            old, new = earlier.get(name), self._settings.get(name)
            if old != new:
                raise FineMixingError(
                    f"the unfinished run in {self._folder} had {name} = {str(old)[:80]}, and now it is "
                    f"{str(new)[:80]}: give the same settings, or remove that folder to begin anew."
                )
        if (folder / TRIALS_NAME).is_file():
            self._trials = read_json(folder / TRIALS_NAME)

    def begin(self) -> None:
        """Note the settings, for whoever goes on. In the main process only."""
        write_text(self._folder / RUN_NAME, json.dumps(self._settings, indent=2) + "\n")

    @staticmethod
    def remove(folder: Path) -> None:
        """Take away from a finished folder what served to go on."""
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for name in (RUN_NAME, TRIALS_NAME):
            (folder / name).unlink(missing_ok=True)

    def last_checkpoint(self, num_processes: int) -> str | None:
        """The newest checkpoint that is whole: its last file is there, and the random state of every process."""
        found = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
            if number and _is_whole(folder, num_processes):
                found.append((int(number[1]), str(folder)))
        return max(found)[1] if found else None

    def trial(self, ratio: float, attempt: Callable[[], Outcome], *, main_process: bool) -> Outcome:
        """The outcome of a trial: as it was kept, or by an attempt, and kept."""
        if (kept := self._trials.get(str(ratio))) is not None:
            if self.observer is not None:
                self.observer.measured += kept["observed"]
            answers = {name: np.array(kept[name], dtype=bool) for name in ("suspect", "cleaned")}
            return Outcome(**answers, stopped_early=kept["stopped_early"], trainings=kept["trainings"])
        outcome = attempt()
        kept = {**asdict(outcome), "suspect": outcome.suspect.tolist(), "cleaned": outcome.cleaned.tolist()}
        kept["observed"] = [] if self.observer is None else self.observer.measured[-outcome.trainings :]
        self._trials[str(ratio)] = kept
        if main_process:
            write_text(self._folder / TRIALS_NAME, json.dumps(self._trials))
        return outcome


def _is_whole(folder: Path, num_processes: int) -> bool:
    try:
        read_json(folder / "trainer_state.json")  # which is written last
    except FineMixingError:
        return False
    return len(list(folder.glob("rng_state*.pth"))) >= num_processes
