"""What is planned and what came back, as plain values."""
