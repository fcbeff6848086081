"""`python -m adapt`: the same as the command `adapt`."""

from adapt.cli import main

main()
