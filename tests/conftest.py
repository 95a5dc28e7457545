"""One thread per test process (two processes run side by side: see pyproject.toml), and every test seeded alike.

What a test draws then depends neither on the tests before it nor on how they were dealt out to processes.
FXFUSE_TEST_SEED sets another seed: a test that passes with one seed alone asks too much of chance.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what the tests start

import random

import numpy as np
import pytest
import torch

SEED = int(os.environ.get("FXFUSE_TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)  # before the fixtures of any scope
def pytest_runtest_setup():
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
