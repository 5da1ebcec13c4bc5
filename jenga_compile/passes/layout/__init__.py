"""Following a token axis up through a graph: what `infer_layout` rests on."""
