"""The detached network: what is frozen in one forward pass, and sweeps through what is left."""
