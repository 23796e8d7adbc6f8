"""What a long-lived process does about garbage."""

import subprocess
import sys

PROGRAM = """
import gc
from web.collector import settle_memory
settle_memory()
print(gc.get_freeze_count(), gc.isenabled())
"""


def test_what_is_there_at_the_start_is_not_looked_at_again() -> None:
    frozen, enabled = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).split()
    assert int(frozen) > 1000
    assert enabled == "True"
