"""The v1 JSON API: detection in typed JSON under ``/v1``, for callers without a client library."""
