"""Targets of a whole data set from stored predictions: ``yolo-assigner assign``.

:func:`yolo_assigner.audit.assign.shard.assign_shard` assigns one file of predictions and writes one file of targets;
:func:`yolo_assigner.audit.assign.targets.read_targets` reads that back. Needs the extra ``audit``.
"""
