"""What nobody with good intentions sends."""
