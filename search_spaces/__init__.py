"""Search spaces shipped with archsearch, found by name through `archsearch.spaces`."""
