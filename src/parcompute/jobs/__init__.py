"""What to compute, as a value that travels: kernel, inputs, outputs, schedule, checkpoint."""
