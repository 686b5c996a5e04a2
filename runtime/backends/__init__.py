"""Engine backends behind one protocol."""
