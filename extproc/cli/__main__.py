"""`python -m extproc.cli`: the command without its console script."""

from extproc.cli import main

main()
