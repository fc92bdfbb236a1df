"""``yolo-assigner export``."""

import sys

from yolo_assigner.export.cli import main

sys.exit(main())
