"""Using a trained model: text from it, its scores, its speed, and what its mixers look at."""

from archsearch.inference.loading import Loaded, load

__all__ = ["Loaded", "load"]
