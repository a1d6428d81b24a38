"""Worker processes: the agent that leases jobs, and the child that runs one."""
