"""`python -m vizsla.cli`: the command line where there is no `vizsla` on the path."""

from vizsla.cli import main

main()
