"""HTTP of endpoints."""
