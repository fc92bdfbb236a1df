"""The command ``yolo-assigner export``, as ``python -m yolo_assigner.export``."""

import sys

from yolo_assigner.export.cli import main

sys.exit(main())
