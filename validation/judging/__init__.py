"""Judging: pure functions from raw records to findings. No clock, no network, no files, no torch."""
