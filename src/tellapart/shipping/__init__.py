"""A bundle is made: formats written, proved equal to the network, and packed. Knows Keras."""
