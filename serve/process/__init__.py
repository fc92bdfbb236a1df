"""Models in a process of their own.

The process that answers callers never waits there for an interpreter that somebody else holds, and goes on when the
engines' process is killed, crashes or hangs in native code. Bodies and replies lie in memory that both processes see;
what they say to each other are small messages over a socket.
"""
