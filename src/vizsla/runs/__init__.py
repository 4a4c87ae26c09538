"""Run folders: where everything about a training is written, and read again."""
