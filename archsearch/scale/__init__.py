"""From the winners of a search to larger models, and what their losses say."""
