"""Models in a process of their own, the worker, which the server starts, watches and starts again.

The server's process answers HTTP without ever waiting for an interpreter that the engines hold, and goes on when the
worker is killed, crashes or hangs in native code. Bodies and replies lie in memory that both processes map; all else
travels as small messages over a socket. ``supervisor`` keeps a worker running, ``child`` is one life of it as the
server sees it, and ``worker`` is what runs inside.
"""
