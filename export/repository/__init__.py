"""``yolo-assigner export all``: a folder with every model and engine that a configuration file names."""
