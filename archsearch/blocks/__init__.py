"""One block = one file. A block is found by its entry point in `archsearch.blocks`."""
