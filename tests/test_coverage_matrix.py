"""The laws on one small model per family; every column on the whole matrix behind ``pytest -m matrix``."""

import pytest

from fxfuse.coverage.catalogue import catalogue, missing
from fxfuse.coverage.checks import LAWS
from fxfuse.coverage.worker import run_row

SMALL = [name for name, entry in catalogue().items() if entry.family in ("torch", "torchvision narrow")]
SMALL += ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "lcnet_050"]
SMALL += ["BertForSequenceClassification", "GPT2LMHeadModel"]


def judge(name, folder, **options):
    entry = catalogue()[name]
    if entry.family in missing():
        pytest.skip(f"{missing()[entry.family]} is an extra")
    record = run_row(entry, folder, name=name, **options)
    assert not record.failed, record.reason


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", SMALL)
def test_laws_hold_in_every_family(name, tmp_path):
    judge(name, tmp_path, columns=LAWS)


@pytest.mark.matrix
@pytest.mark.parametrize("name", catalogue())
def test_every_column_holds_for_every_model(name, tmp_path):
    judge(name, tmp_path)
