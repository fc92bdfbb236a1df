"""From the bytes of a request to those of its reply: reading, checking, computing, writing. Knows no HTTP."""
