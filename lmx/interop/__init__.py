"""Foreign weights, in and out: rules that name every tensor, and a readable report of what does not fit."""
