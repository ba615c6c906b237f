"""When, and in which order: the night, and the command line that starts it."""
