"""What runs the models: the queue before an engine, requests computed together, and the runners."""
