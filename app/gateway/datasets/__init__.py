"""HTTP of datasets."""
