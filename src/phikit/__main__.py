"""`python -m phikit` is `phikit`."""

from phikit.cli import main

main()
