"""AI Mass: the application without its heavy parts."""
