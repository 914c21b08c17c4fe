"""`python -m archsearch` is `archsearch`."""

from archsearch.cli import main

main()
