"""What a GPU needs: that nothing waits for it, and everything once more on a real one."""
