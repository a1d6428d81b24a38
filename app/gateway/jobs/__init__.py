"""HTTP of jobs."""
