"""Proving what a mask says, and building it anew: what `normalise_mask` rests on."""
