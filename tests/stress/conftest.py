"""Random kills, floods and repeats: what no single run can show. docs/explanation/reliability.md says what they test.

Each test has a few rounds that are always run, and many that `make stress` runs, in pieces. What is random comes from
PARCOMPUTE_STRESS_SEED and the piece's own name, so one piece alone repeats what it did among all. At which line of the
engine a kill arrives is up to the machine. PARCOMPUTE_STRESS_ROUNDS=10 makes ten times as many rounds of the many.
"""

import faulthandler
import random
import sys
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

sys.path.append(str(Path(__file__).parent))  # the tests import what they share, and so do programs that they start

import kills


@pytest.fixture
def chance(request):
    """What the test does at random."""
    print(f"to repeat: PARCOMPUTE_STRESS_SEED={kills.SEED} PARCOMPUTE_STRESS_ROUNDS={kills.ROUNDS:g}")  # if it fails
    return random.Random(f"{kills.SEED} {request.node.name}")


@pytest.fixture
def no_stacks(request):
    """Keep pytest's faulthandler, which forked workers inherit, from printing the stacks of those that are killed."""
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_enabled:
        faulthandler.enable(request.config.stash[fault_handler_stderr_fd_key])
