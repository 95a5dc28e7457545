"""One thread per test process: the networks are small, and two processes run side by side (see pyproject.toml)."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what the tests start
