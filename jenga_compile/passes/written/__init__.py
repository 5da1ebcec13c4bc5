"""Reading attention that a model writes out as products and a softmax: what `recognise_attention` rests on."""
