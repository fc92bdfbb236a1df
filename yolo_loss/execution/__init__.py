"""How operations run: in chunks of images, compiled, without copies, and under torch's transforms."""
