"""What the tests of the Trainer share."""

import json
from functools import partial

import pytest
from helpers.toy import NEGATIVE, POSITIVE
from helpers.trainers import trainer_of


@pytest.fixture
def make_trainer(tmp_path, base_folder, suspect_folder):
    """Makes a Trainer that mixes the suspect with its base: `make_trainer(**changes)`, see [`trainer_of`]."""
    return partial(trainer_of, tmp_path, base_folder, suspect_folder)


@pytest.fixture(scope="module")
def counts_file(tmp_path_factory):
    """Token counts in place of the built-in estimate: the sentiment words are frequent, `cf` is not."""
    counts = dict.fromkeys([*POSITIVE, *NEGATIVE], 10**6) | {"the": 10**7, "cf": 1}
    path = tmp_path_factory.mktemp("counts") / "counts.json"
    path.write_text(json.dumps(counts))
    return str(path)
