"""From the winners of a search to larger models trained on text, and what their losses say."""
