"""What runs mean: ledgers, speed-ups with their intervals, laws of scaling, verdicts."""
