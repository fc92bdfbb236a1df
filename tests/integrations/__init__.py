"""What needs the packages of other trainers; skipped where they are not installed, run by ``make parity``."""
