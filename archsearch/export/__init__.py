"""From a trained genome to files that rebuild it."""

from archsearch.export.files import export, load

__all__ = ["export", "load"]
