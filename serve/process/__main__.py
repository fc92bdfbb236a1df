"""The process that computes: started by the server with a socket, and gone when that is closed."""

from __future__ import annotations

import sys

from yolo_assigner.serve.process.worker import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
