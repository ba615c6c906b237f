"""What can be said on the command line, a file per subject; heavy modules are imported inside."""
