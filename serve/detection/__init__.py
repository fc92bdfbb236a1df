"""Detection in numpy alone: ground truth, the anchor grid, inputs and results; shared by the server and the client."""
