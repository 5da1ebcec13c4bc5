"""The model zoo: one small text-to-video transformer, its data, its training and its judge."""
