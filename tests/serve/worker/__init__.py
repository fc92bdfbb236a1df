"""Models in a process of their own."""
