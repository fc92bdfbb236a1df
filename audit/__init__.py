"""Why the objects of a whole data set are learned or not: ``yolo-assigner audit``.

:func:`yolo_assigner.audit.shard.audit_shard` explains one part of the set and writes one file;
:mod:`yolo_assigner.audit.summary` and :mod:`yolo_assigner.audit.report` read these files. Needs the extra ``audit``.
"""
