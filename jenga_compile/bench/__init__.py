"""What `jenga bench` measures: a module each, and the processes that measure."""
