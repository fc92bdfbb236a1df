"""The service on Ray Serve: one application, replicas on any number of machines behind Ray's proxies.

Only :mod:`yolo_assigner.serve.cluster.command` and :mod:`yolo_assigner.serve.cluster.application` import Ray.
"""
