"""What every request passes, whatever it asks: connections, bodies, keys, admission, replies, logs, metrics."""
