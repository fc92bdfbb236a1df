"""What building an engine takes: the library, its log, its progress, the network and the configuration."""
