"""Soak: load for hours under a seeded schedule of faults, and verdicts on what drifted, broke or was left behind."""
