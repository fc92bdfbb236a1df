"""Run the worker; the server starts it with the descriptor of a socket, and it ends when that is closed."""

from __future__ import annotations

import sys

from yolo_assigner.serve.process.worker import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
