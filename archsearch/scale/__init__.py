"""Winners at a larger scale, on real text."""
