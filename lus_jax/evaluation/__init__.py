"""How good a model is: sums per image on the device, finished in float64 on the host."""
