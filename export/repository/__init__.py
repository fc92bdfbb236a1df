"""All models and engines that a configuration file names: ``yolo-assigner export all``."""
