"""Metrics, latency, reference histograms and warnings about the data."""
