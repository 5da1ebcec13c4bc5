"""Planning, writing and verifying a reordered graph: what `hoist_reorder` rests on."""
