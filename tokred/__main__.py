"""`python -m tokred`, the same as `tokred`."""

from tokred.cli import main

main()
