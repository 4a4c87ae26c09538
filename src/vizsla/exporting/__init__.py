"""A trained network to the files that a bundle carries."""
