"""Measurements of vizsla: how fast, how large, how right. `README.md` says what was measured."""
