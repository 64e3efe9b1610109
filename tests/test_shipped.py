"""The suites that come with attnbench: each asks a question, and can be run."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from attnbench import plan, plugins, suites
from attnbench.models import MODELS
from attnbench.plugins import Registry

ROOT = Path(__file__).parents[1]
MINUTES = {"decode": 5, "mixed-serving": 5}
"""Of a run on two cores with the preset `default`, at the most."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return plugins.discover()


@pytest.mark.parametrize("name", suites.shipped())
def test_it_asks_a_question_loads_and_fits_the_schema(name: str) -> None:
    suite = suites.load(name)
    first = suite.text.splitlines()[0]
    assert first == f"question: {suite.question}"
    assert suite.question.endswith("?")
    jsonschema.validate(yaml.safe_load(suite.text), suites.schema())


@pytest.mark.parametrize("name", suites.shipped())
def test_it_has_jobs_on_each_kind_of_device_that_it_is_for(name: str, registry: Registry) -> None:
    told = suites.load(name)
    own = {device.partition(":")[0] for device in told.devices}
    for kind in own | {kind for kinds in told.kinds.values() for kind in kinds}:
        suite = suites.load(name, [f"device={kind}"])
        made = plan.make(suite, registry, devices=plan.resolve([kind]), threads=2, elsewhere=("cuda",))
        assert made.jobs
        if suite.baseline:
            assert suite.baseline in {job.cell.implementation for job in made.jobs}


@pytest.mark.parametrize("name", MINUTES)
def test_it_is_done_on_a_cpu_in_minutes(name: str, registry: Registry) -> None:
    suite = suites.load(name, ["device=cpu", "measure.preset=default"])
    made = plan.make(suite, registry, devices=plan.resolve(["cpu"]), threads=2)
    assert made.seconds < 60 * MINUTES[name]


def test_models_has_every_model_of_the_table_on_each_kind_of_device() -> None:
    for device in ("cpu", "cuda"):
        blocks = [b for b in suites.load("models").blocks if not b.kinds or device in b.kinds]
        named = [
            model
            for block in blocks
            for axis in block.axes
            if axis.names == ("model",)
            for (model,) in axis.rows
        ]
        assert sorted(named) == sorted(MODELS)


def test_decode_goes_from_one_sequence_to_256_and_from_1k_to_128k_on_a_gpu() -> None:
    suite = suites.load("decode")
    found = [p for p in suite.problems if "cuda" in suite.kinds[p.text]]
    assert {p.batch for p in found} == {1, 4, 16, 64, 256}
    contexts = {p.sequences[0] for p in found}
    assert (min(contexts), max(contexts)) == ((1, 1024), (1, 128 * 1024))


def test_the_docs_list_every_shipped_suite() -> None:
    page = (ROOT / "docs/suites.md").read_text()
    (table,) = re.findall(r"^\| suite \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    named = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(suites.shipped())
