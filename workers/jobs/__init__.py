"""One file a job kind; each has `run(job: JobContext) -> dict`."""
