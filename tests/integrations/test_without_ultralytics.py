"""What holds where the package is not installed."""

from __future__ import annotations

import subprocess
import sys

MISSING = """
import sys
sys.modules["ultralytics"] = None
from yolo_loss.integrations.ultralytics import restore, use
restore()
try:
    use()
except ImportError as error:
    print(error)
"""


def test_the_module_imports_and_says_what_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=True)
    assert "needs your own installation of ultralytics (AGPL-3.0)" in done.stdout


def test_importing_it_does_not_import_the_package() -> None:
    code = "import sys, yolo_loss.integrations.ultralytics\nprint('ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
