"""HTTP: connections, middleware, endpoints and their documentation, and metrics."""
