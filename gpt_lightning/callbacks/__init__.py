"""What watches or steers a run, one thing per callback."""
