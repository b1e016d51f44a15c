"""What the compiler makes of the device kernels, with no device there."""
