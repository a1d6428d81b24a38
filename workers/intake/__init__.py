"""Models that were not trained here: checked without being trusted, run once, described."""
