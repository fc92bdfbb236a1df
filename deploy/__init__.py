"""The container image: what runs in it, and how a built one is checked."""
