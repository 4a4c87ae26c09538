"""Search: which settings are tried, by trainings that share what they have in common."""
