"""The Open Inference Protocol's requests and responses, between bytes and arrays; no HTTP and no models."""
