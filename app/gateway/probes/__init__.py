"""HTTP of probes."""
